"""Gateways, which forward requests to other providers."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from aiohttp import web
from multidict import CIMultiDictProxy

from tests.support.emulators.base import KEY, Emulator, Json, request_id
from tests.support.scripted import Call


class OpenRouter(Emulator):
    """https://openrouter.ai/docs/api/reference/embeddings"""

    name = "openrouter"
    base = "/api/v1"
    target = "/api/v1/embeddings"
    models = ("openai/text-embedding-3-small", "google/gemini-embedding-2")
    fused = frozenset({"google/gemini-embedding-2"})
    takes_tokens = True
    acting: ClassVar[Mapping[str, tuple[object, object]]] = {
        "input_type": (None, "search_query"),
        "provider": (None, {"order": ["openai"], "allow_fallbacks": False}),
    }
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


class Infron(Emulator):
    """https://infronai.gitbook.io/docs/api-reference/embeddings"""

    name = "infron"
    models = ("openai/text-embedding-3-small", "qwen/qwen3-embedding-0.6b")
    acting: ClassVar[Mapping[str, tuple[object, object]]] = {"provider": (None, {"service_tier": "flex"})}

    def error(self, status: int, message: str) -> Json:
        return {"error": {"message": message, "type": "", "param": "", "code": status}}

    def malformed(self, _: Call) -> web.Response:
        return self.ok(self.error(503, "No provider fits the routing"))


class Apertis(Emulator):
    """https://docs.apertis.ai/api/text-generation/embeddings"""

    name = "apertis"
    models = ("text-embedding-3-small", "jina-embeddings-v3", "gemini-embedding-2-preview")
    fused = frozenset({"gemini-embedding-2-preview"})
    acting: ClassVar[Mapping[str, tuple[object, object]]] = {"task": ("none", "retrieval.query")}
    headers: ClassVar[Mapping[str, str]] = {"X-RateLimit-Limit": "3000", "X-RateLimit-Remaining": "2999"}
    retry_headers: ClassVar[Mapping[str, str]] = {
        "Retry-After": "30",
        "X-RateLimit-Limit": "3000",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": "1741305600",
    }
    texts: ClassVar[Mapping[int, str]] = {
        401: "Invalid API key provided",
        402: "You have exceeded your quota",
        404: "The model 'xyz' does not exist",
        429: "Rate limit exceeded. Please wait before making more requests.",
    }
    codes: ClassVar[Mapping[int, tuple[str, str]]] = {
        400: ("invalid_request_error", "invalid_request"),
        401: ("authentication_error", "invalid_api_key"),
        402: ("billing_error", "quota_exceeded"),
        404: ("invalid_request_error", "model_not_found"),
        429: ("rate_limit_error", "rate_limit_exceeded"),
    }

    def check_key(self, headers: CIMultiDictProxy[str]) -> None:
        if "Authorization" in headers or headers.get("x-api-key") != KEY:
            super().check_key(headers)

    def error(self, status: int, message: str) -> Json:
        kind, code = self.codes.get(status, ("server_error", "service_unavailable"))
        return {"error": {"message": message, "type": kind, "code": code}}


class Aigne(Emulator):
    """https://www.arcblock.io/content/docs/aigne-hub; as its source has it, which is not quite as documented."""

    name = "aigne"
    base = "/app/api/v1"
    target = "/app/api/v1/embeddings"
    takes_tokens = True
    length_field = None
    base64: ClassVar[Literal["written", "ignored"]] = "ignored"
    floats: ClassVar[Literal["shortest", "widened"]] = "widened"
    texts: ClassVar[Mapping[int, str]] = {
        401: "verify sig failed",
        402: "Hello, in order to continue using AI services, please first buy some credits in the link below.",
        404: "Provider x not found, Please check the model name and provider.",
        503: "Provider 'x' is not available or not configured",
    }

    def unknown_encoding(self, encoding: object) -> None:
        pass

    def error(self, status: int, message: str) -> Json:
        if status == 402:
            said = {"message": message, "timestamp": 1, "type": "NOT_ENOUGH", "link": "https://hub.example/credits"}
            return {"error": said}
        return {"error": message if status in {400, 401, 404, 503} else {"message": message}}

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        return {"data": data}

    def malformed(self, call: Call) -> web.Response:
        """What its SDK makes of an upstream that ignores base64."""
        return self.ok({"data": [self.datum(i, [0.0] * (self.native // 4)) for i in range(len(call.items))]})


class NemoRouter(Emulator):
    """https://nemorouter.ai/docs/api-reference/embeddings"""

    name = "nemorouter"
    models = ("gemini-embedding-001", "text-embedding-005")
    headers: ClassVar[Mapping[str, str]] = {
        "x-nr-request-id": "1",
        "x-nr-guardrails": "pass",
        "x-nr-request-cost": "0.1",
    }
    retry_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "60", "x-nr-limit-source": "key"}
    codes: ClassVar[Mapping[int, str]] = {
        400: "guardrail_blocked",
        402: "insufficient_credits",
        429: "rate_limit_exceeded",
        503: "credit_check_failed",
    }

    def error(self, status: int, message: str) -> Json:
        if status in self.codes:
            return {"error": message, "code": self.codes[status], "request_id": "1"}
        return {"detail": message} if status == 404 else {"error": {"message": message, "type": "gateway_error"}}

    def redacting(self, call: Call) -> web.Response:
        """A guardrail rewrote what was sent."""
        asked = call.json | {"input": ["[redacted]"] * len(call.items)}
        said = self.envelope(asked, self.data(asked), 1)
        return self.ok(said, headers=dict(self.headers) | {"x-nr-guardrails": "redacted"})

    def malformed(self, _: Call) -> web.Response:
        return self.ok({"error": {"message": "Resource exhausted", "code": 429}})
