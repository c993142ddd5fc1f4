"""The providers that pass requests on to other providers."""

from collections.abc import Mapping
from typing import Any, ClassVar

from aiohttp import web

from tests.emulators.base import Emulator, Json, request_id
from tests.scripted import Call


class OpenRouter(Emulator):
    """https://openrouter.ai/docs/api/reference/embeddings"""

    name = "openrouter"
    base = "/api/v1"
    target = "/api/v1/embeddings"
    models = ("openai/text-embedding-3-small", "google/gemini-embedding-2")
    takes_tokens = True
    acting: ClassVar[Mapping[str, object]] = {"input_type": None, "provider": None}
    texts: ClassVar[Mapping[int, str]] = {
        400: "Invalid request parameters",
        401: "Missing Authentication header",
        402: "Insufficient credits. Add more using https://openrouter.ai/credits",
        404: "Resource not found",
        529: "Provider returned error",
    }
    headers: ClassVar[Mapping[str, str]] = {"X-Generation-Id": "gen-emb-1"}
    retry_headers: ClassVar[Mapping[str, str]] = {
        "Retry-After": "5",
        "X-RateLimit-Limit": "20",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": "1741305600000",
    }

    def takes(self, item: Any) -> bool:
        return (isinstance(item, dict) and bool(item.get("content"))) or super().takes(item)

    def error(self, status: int, message: str) -> Json:
        return {"error": {"code": status, "message": message, "metadata": None}, "user_id": None}

    def datum(self, index: int, embedding: Any) -> Json:
        return {"object": "embedding", "embedding": embedding, "index": index}

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "cost": 6e-8, "is_byok": False}
        said = {"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage}
        return said | {"provider": "OpenAI", "id": f"gen-emb-{request_id(asked)}"}

    def malformed(self, _: Call) -> web.Response:
        return self.ok(self.error(502, "Provider returned error"))
