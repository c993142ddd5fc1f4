"""The providers that run models of their own, or of others, for everyone."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from aiohttp import web

from tests.emulators.base import KEY, Emulator, Json, Numbers, Refusal, numbers, quantised
from tests.scripted import Call

_DTYPES = frozenset({None, "float", "int8", "uint8", "binary", "ubinary"})


class OpenAI(Emulator):
    """https://platform.openai.com/docs/api-reference/embeddings/create"""

    name = "openai"
    models: ClassVar[tuple[str, ...]] = ("text-embedding-3-small", "text-embedding-3-large")
    takes_tokens = True
    refuses_unknown = True
    texts: ClassVar[Mapping[int, str]] = {
        400: "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference.",
        401: "Incorrect API key provided: DEADBEEF. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
        404: "The model `does-not-exist` does not exist or you do not have access to it.",
    }
    headers: ClassVar[Mapping[str, str]] = {
        "x-request-id": "req_1",
        "openai-processing-ms": "33",
        "x-ratelimit-remaining-requests": "2999",
        "x-ratelimit-reset-requests": "6ms",
    }
    retry_headers: ClassVar[Mapping[str, str]] = {
        "retry-after": "2",
        "retry-after-ms": "1500",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-tokens": "1.5s",
    }

    def error(self, status: int, message: str) -> Json:
        kinds = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
        kind = "invalid_request_error" if status < 500 else "server_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": kinds.get(status)}}

    def malformed(self, _: Call) -> web.Response:
        return self.ok({"object": "list", "data": [], "model": self.models[0]})


class Azure(OpenAI):
    """https://learn.microsoft.com/azure/ai-foundry/openai/reference: the deployment is in the path, or the model."""

    name = "azure"
    base = "/openai/v1"
    target = "/openai/deployments/small/embeddings?api-version=2024-10-21"
    client_target = target
    credentials: ClassVar[Mapping[str, str]] = {"api-key": KEY}
    deployments: ClassVar[Sequence[str]] = ("small", "large")
    models = ()
    acting: ClassVar[Mapping[str, object]] = {"input_type": None}
    refuses_unknown = False
    texts: ClassVar[Mapping[int, str]] = {
        401: "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key "
        "for an active subscription and use a correct regional API endpoint for your resource.",
        404: "The API deployment for this resource does not exist.",
        429: "Requests to the Embeddings_Create Operation under Azure OpenAI API version 2024-02-15-preview have "
        "exceeded call rate limit of your current OpenAI S0 pricing tier. Please retry after 86400 seconds.",
    }
    headers: ClassVar[Mapping[str, str]] = {"apim-request-id": "1", "x-ms-region": "East US"}
    retry_headers: ClassVar[Mapping[str, str]] = {"retry-after": "86400", "retry-after-ms": "86400000"}

    def check_path(self, path: str) -> None:
        if path != "/openai/v1/embeddings" and self._deployment(path) not in self.deployments:
            raise Refusal(404)

    def _deployment(self, path: str) -> str:
        return path.removeprefix("/openai/deployments/").removesuffix("/embeddings")

    def read(self, call: Call) -> Json:
        asked = super().read(call)
        path, _, query = call.target.partition("?")
        if path == "/openai/v1/embeddings":
            if asked.get("model") not in self.deployments:
                raise Refusal(404)
            return asked
        if "api-version=" not in query:
            raise Refusal(404)
        return asked | {"model": self._deployment(path)}

    def error(self, status: int, message: str) -> Json:
        code = "DeploymentNotFound" if status == 404 else str(status)
        return {"error": {"code": code, "message": message}}

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        return super().envelope(asked, data, tokens) | {"model": "text-embedding-3"}

    def malformed(self, _: Call) -> web.Response:
        return self.ok({"error": {"message": "HTTP 429: {}", "code": 429}})


class Jina(Emulator):
    """https://api.jina.ai/docs"""

    name = "jina"
    models = ("jina-embeddings-v3", "jina-embeddings-v4")
    acting: ClassVar[Mapping[str, object]] = {"task": None, "normalized": True, "truncate": False}
    idle = frozenset({"late_chunking", "return_multivector"})
    refuses_unknown = True
    invalid = 422
    max_items = 512
    encoding_field = "embedding_type"
    floats: ClassVar[Literal["shortest", "widened"]] = "widened"
    headers: ClassVar[Mapping[str, str]] = {"X-RateLimit-Remaining-Requests": "499"}
    retry_headers: ClassVar[Mapping[str, str]] = {
        "X-RateLimit-Remaining-Requests": "0",
        "X-RateLimit-Remaining-Tokens": "1",
    }
    codes: ClassVar[Mapping[int, str]] = {
        400: "INPUT_MODEL_NOT_FOUND",
        401: "AUTH_INVALID_API_KEY",
        403: "AUTHZ_INSUFFICIENT_BALANCE",
        429: "RATE_REQUEST_LIMIT_EXCEEDED",
        500: "INTERNAL_ERROR",
        503: "SERVICE_UNAVAILABLE",
    }

    def error(self, status: int, message: str) -> Json:
        if status == 422:
            return {"detail": "[RID: 03f5] Validation errors in 1 field", "errors": [{"message": message}]}
        return {"detail": message, "code": self.codes.get(status, "ERROR"), "request_id": "03f5"}

    def unknown_model(self, model: object) -> Refusal:
        return Refusal(400, f"Model {model} not found")

    def unknown_field(self, name: str) -> Refusal:
        return Refusal(422, f"body -> {self.models[0]} -> {name}: Extra inputs are not permitted")

    def takes(self, item: Any) -> bool:
        if isinstance(item, dict):
            return len(item) == 1 and bool(item.keys() & {"text", "image"})
        return super().takes(item)

    def unknown_encoding(self, encoding: object) -> None:
        wanted = encoding if isinstance(encoding, list) else [encoding]
        if not set(wanted) <= {"float", "base64", "binary", "ubinary"}:
            super().unknown_encoding(encoding)

    def meaning(self, asked: Json) -> Json:
        # All inputs of a late-chunked call are one sequence.
        sequence = {"sequence": asked["input"]} if asked.get("late_chunking") else {}
        return super().meaning(asked) | sequence

    def written(self, values: Numbers, asked: Json) -> Any:
        kind = asked.get("embedding_type")
        if isinstance(kind, list):
            return {name: self.written(values, {"embedding_type": name}) for name in kind}
        return numbers(quantised(values, kind)) if kind in _DTYPES - {None} else super().written(values, asked)

    def data(self, asked: Json) -> list[Json]:
        if not asked.get("return_multivector"):
            return super().data(asked)
        return [
            {"object": "embeddings", "index": i, "embeddings": [numbers(values[:8]), numbers(values[8:])]}
            for i, values in enumerate(self.vectors(asked))
        ]

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        usage = {"total_tokens": tokens, "prompt_tokens": tokens}
        return {"model": asked["model"], "object": "list", "usage": usage, "data": data}

    def malformed(self, call: Call) -> web.Response:
        asked = call.json | {"return_multivector": True}
        return self.ok(self.envelope(asked, self.data(asked), 1))


class Voyage(Emulator):
    """https://docs.voyageai.com/reference/embeddings-api"""

    name = "voyage"
    models = ("voyage-3.5", "voyage-3-large")
    native = 1024
    max_items = 1000
    acting: ClassVar[Mapping[str, object]] = {"input_type": None, "truncation": True}
    idle = frozenset({"output_dtype"})
    refuses_unknown = True
    length_field = "output_dimension"
    length = 256
    lengths = frozenset({256, 512, 1024, 2048})
    takes_float = False
    headers: ClassVar[Mapping[str, str]] = {
        "x-request-id": "1",
        "x-api-warning": "You have not yet added your payment method.",
    }
    retry_headers: ClassVar[Mapping[str, str]] = {"retry-after": "20"}
    texts: ClassVar[Mapping[int, str]] = {
        429: "You have not yet added your payment method in the billing page and will have reduced rate limits of 3 "
        "RPM and 10K TPM.",
        503: "upstream connect error or disconnect/reset before headers",
    }

    def error(self, status: int, message: str) -> Json | bytes:
        return message.encode() if status == 503 else {"detail": message}

    def unknown_model(self, model: object) -> Refusal:
        return Refusal(400, f"Model {model} is not supported. Supported models are {list(self.models)}.")

    def unknown_field(self, name: str) -> Refusal:
        return Refusal(
            400,
            "The request body is not valid JSON, or some arguments were not specified properly. In particular, "
            f"Argument '{name}' is not supported by our API",
        )

    def unknown_encoding(self, encoding: object) -> None:
        raise Refusal(
            400,
            f"Value '{encoding}' supplied for argument 'encoding_format' is not valid -- accepted values are 'base64'",
        )

    def written(self, values: Numbers, asked: Json) -> Any:
        dtype = asked.get("output_dtype")
        if dtype not in _DTYPES:
            raise Refusal(400, f"Value '{dtype}' supplied for argument 'output_dtype' is not valid")
        # base64 holds the bytes of the type that was asked for.
        return super().written(quantised(values, dtype), asked)

    def datum(self, index: int, embedding: Any) -> Json:
        return {"object": "embedding", "embedding": embedding, "index": index}

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        return {"object": "list", "data": data, "model": asked["model"], "usage": {"total_tokens": tokens}}
