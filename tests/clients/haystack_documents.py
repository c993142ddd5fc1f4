from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder
from haystack.utils import Secret

from tests.clients.loop import serve


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    embedder = OpenAIDocumentEmbedder(
        model=model,
        api_base_url=base_url,
        api_key=Secret.from_token(key),
        progress_bar=False,
        raise_on_failure=True,  # by default it logs an error and leaves the documents without embeddings
    )
    documents = embedder.run([Document(content=text) for text in texts])["documents"]
    return [document.embedding for document in documents]


if __name__ == "__main__":
    serve(embed)
