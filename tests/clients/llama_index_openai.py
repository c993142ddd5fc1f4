from llama_index.embeddings.openai import OpenAIEmbedding

from tests.clients.loop import serve


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    embedding = OpenAIEmbedding(model_name=model, api_base=base_url, api_key=key)
    vectors: list[list[float]] = embedding.get_text_embedding_batch(texts)
    return vectors


if __name__ == "__main__":
    serve(embed)
