from haystack.components.embedders import OpenAITextEmbedder
from haystack.utils import Secret

from tests.clients.loop import serve


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    embedder = OpenAITextEmbedder(model=model, api_base_url=base_url, api_key=Secret.from_token(key))
    return [embedder.run(text)["embedding"] for text in texts]


if __name__ == "__main__":
    serve(embed)
