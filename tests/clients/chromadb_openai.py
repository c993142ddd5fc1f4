from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction

from tests.clients.loop import serve


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    function = OpenAIEmbeddingFunction(api_key=key, api_base=base_url, model_name=model)
    return [vector.tolist() for vector in function(texts)]


if __name__ == "__main__":
    serve(embed)
