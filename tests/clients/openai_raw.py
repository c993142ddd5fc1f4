"""The body itself: nothing in the client mends it."""

import base64
import json
import struct

from openai import OpenAI

from tests.clients.loop import serve


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    with OpenAI(base_url=base_url, api_key=key) as client:
        response = client.embeddings.with_raw_response.create(model=model, input=texts)
        return [decoded(datum["embedding"]) for datum in json.loads(response.content)["data"]]


def decoded(text: str) -> list[float]:
    return [value for (value,) in struct.iter_unpack("<f", base64.b64decode(text, validate=True))]


if __name__ == "__main__":
    serve(embed)
