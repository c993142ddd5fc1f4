from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr

from tests.clients.loop import serve


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    embeddings = OpenAIEmbeddings(
        model=model, base_url=base_url, api_key=SecretStr(key), check_embedding_ctx_length=False
    )
    return embeddings.embed_documents(texts)


if __name__ == "__main__":
    serve(embed)
