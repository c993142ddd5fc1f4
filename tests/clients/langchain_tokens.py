"""LangChain as it is by default: it sends tokens."""

import tiktoken.registry
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr

from tests.clients.loop import serve


def bytes_as_tokens() -> dict[str, object]:
    return {
        "name": "cl100k_base",
        "pat_str": r"[\s\S]+",
        "mergeable_ranks": {bytes([byte]): byte for byte in range(256)},
        "special_tokens": {},
    }


# tiktoken would download the vocabulary. To the proxy tokens are numbers, so one made by hand does: each byte is one.
# It goes by the name of the encoding that LangChain falls back on for models it doesn't know.
tiktoken.registry.ENCODING_CONSTRUCTORS = {"cl100k_base": bytes_as_tokens}


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    return OpenAIEmbeddings(model=model, base_url=base_url, api_key=SecretStr(key)).embed_documents(texts)


if __name__ == "__main__":
    serve(embed)
