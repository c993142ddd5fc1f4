from mistralai.client import Mistral

from tests.clients.loop import serve


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    client = Mistral(api_key=key, server_url=base_url.removesuffix("/v1"))
    answer = client.embeddings.create(model=model, inputs=texts)
    return [list(datum.embedding or ()) for datum in answer.data]


if __name__ == "__main__":
    serve(embed)
