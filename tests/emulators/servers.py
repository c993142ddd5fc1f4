"""The servers that one runs oneself."""

from collections.abc import Mapping
from typing import Any, ClassVar

from aiohttp import web

from tests.emulators.base import Emulator, Json, Refusal
from tests.scripted import Call


class Tei(Emulator):
    """https://huggingface.github.io/text-embeddings-inference/"""

    name = "tei"
    takes_tokens = True
    max_items = 32
    invalid = 422
    headers: ClassVar[Mapping[str, str]] = {"x-compute-type": "gpu+optimized", "x-compute-tokens": "7"}
    texts: ClassVar[Mapping[int, str]] = {
        400: "Input validation error: `inputs` cannot be empty",
        429: "Model is overloaded",
    }
    kinds: ClassVar[Mapping[int, str]] = {400: "Empty", 422: "Validation", 424: "Backend", 429: "Overloaded"}

    def error(self, status: int, message: str) -> Json | bytes:
        if status == 401:
            return b""
        return {"message": message, "code": status, "type": self.kinds.get(status, "Unhealthy")}

    def too_many(self, items: int) -> Refusal:
        return Refusal(422, f"batch size {items} > maximum allowed batch size {self.max_items}")

    def weights(self, _: Json) -> str:
        return "BAAI/bge-m3"

    def datum(self, index: int, embedding: Any) -> Json:
        return {"object": "embedding", "embedding": embedding, "index": index}

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        return super().envelope(asked | {"model": "BAAI/bge-m3"}, data, tokens)

    def malformed(self, call: Call) -> web.Response:
        asked = self.read(call)
        data = self.data(asked)
        data[0]["embedding"] = [None] * self.native  # how NaN is written
        return self.ok(self.envelope(asked, data, 1))
