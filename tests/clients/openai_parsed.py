from openai import OpenAI

from tests.clients.loop import serve


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    with OpenAI(base_url=base_url, api_key=key) as client:
        parsed = client.embeddings.with_raw_response.create(model=model, input=texts).parse()
        return [datum.embedding for datum in parsed.data]


if __name__ == "__main__":
    serve(embed)
