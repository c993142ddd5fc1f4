import litellm

from tests.clients.loop import serve


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    answer = litellm.embedding(model=f"openai/{model}", input=texts, api_base=base_url, api_key=key)
    return [datum["embedding"] for datum in answer.data]


if __name__ == "__main__":
    serve(embed)
