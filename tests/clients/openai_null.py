"""openai-python with ``encoding_format=None``, which it sends as null; to leave the field out takes ``omit``."""

from openai import OpenAI

from tests.clients.loop import serve


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    with OpenAI(base_url=base_url, api_key=key) as client:
        # The SDK's types allow no None. litellm, and code that hands on an optional setting, send it all the same.
        response = client.embeddings.create(model=model, input=texts, encoding_format=None)  # type: ignore[arg-type]
        return [datum.embedding for datum in response.data]


if __name__ == "__main__":
    serve(embed)
