"""Providers that serve their own embedding models."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from aiohttp import web

from tests.support.emulators.base import Emulator, Json, Numbers, Refusal, numbers, quantised
from tests.support.scripted import Call

_DTYPES = frozenset({None, "float", "int8", "uint8", "binary", "ubinary"})


def _encoding(asked: Json) -> Any:
    """Jina's `embedding_type`, or what it takes for that by OpenAI's name."""
    return asked.get("embedding_type", asked.get("encoding_format"))


class Jina(Emulator):
    """https://api.jina.ai/docs; what these leave open as in its own server for one's own machines, jina-on-prem."""

    name = "jina"
    models = ("jina-embeddings-v3", "jina-embeddings-v4")
    acting: ClassVar[Mapping[str, tuple[object, object]]] = {
        "task": (None, "retrieval.query"),
        "normalized": (True, False),
        "truncate": (False, True),
    }
    idle: ClassVar[Mapping[str, object]] = {
        "late_chunking": False,
        "return_multivector": None,
        "return_tokenized_input": False,
    }
    special = frozenset({"encoding_format"})  # another name of embedding_type
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
            error = {"field": "body", "message": message, "type": "value_error", "input": None}
            return {"detail": "[RID: 03f5] Validation errors", "request_id": "03f5", "errors": [error]}
        said = {"message": message, "request_id": "03f5", "code": self.codes.get(status, "ERROR")}
        return {"detail": message} if status == 401 else {"detail": said}

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

    def read(self, call: Call) -> Json:
        return super().read(call) | {"embedding_type": _encoding(call.json)}

    def written(self, values: Numbers, asked: Json) -> Any:
        kind = asked.get("embedding_type")
        if isinstance(kind, list):
            return {name: self.written(values, {"embedding_type": name}) for name in kind}
        if kind in {"binary", "ubinary"}:
            return [float(number) for number in quantised(values, kind)]  # 12.0 and not 12
        return super().written(values, asked)

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
        asked = self.read(call) | {"return_multivector": True}
        return self.ok(self.envelope(asked, self.data(asked), 1))


class Voyage(Emulator):
    """https://docs.voyageai.com/reference/embeddings-api"""

    name = "voyage"
    models = ("voyage-3.5", "voyage-3-large")
    native = 1024
    max_items = 1000
    acting: ClassVar[Mapping[str, tuple[object, object]]] = {"input_type": (None, "query"), "truncation": (True, False)}
    idle: ClassVar[Mapping[str, object]] = {"output_dtype": None}
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


class Cohere(Emulator):
    """https://docs.cohere.com/docs/compatibility-api"""

    name = "cohere"
    base = "/compatibility/v1"
    target = "/compatibility/v1/embeddings"
    models = ("embed-v4.0", "embed-multilingual-v3.0")
    takes_text = False
    max_items = 96
    idle: ClassVar[Mapping[str, object]] = {}
    length_field = None
    is_half = True
    headers: ClassVar[Mapping[str, str]] = {"num_tokens": "3", "x-debug-trace-id": "1", "cache-control": "no-cache"}
    texts: ClassVar[Mapping[int, str]] = {
        400: "invalid request: inputs contains an element that is the empty string at index 0",
        401: "invalid api token",
        402: "Maximum billing reached for this API key",
        429: "You are using a Trial key, which is limited to 40 API calls / minute.",
    }

    def error(self, status: int, message: str) -> Json:
        return {"id": "06c34015-0000-4000-8000-000000000000", "message": message}

    def unknown_model(self, model: object) -> Refusal:
        return Refusal(
            404,
            f"model '{model}' not found, make sure the correct model ID was used and that you have access to it.",
        )

    def too_many(self, items: int) -> Refusal:
        return Refusal(400, f"invalid request: total number of texts must be at most 96 - received {items}")

    def malformed(self, call: Call) -> web.Response:
        """The native form."""
        floats = [datum["embedding"] for datum in self.data(call.json)]
        return self.ok({"id": "1", "texts": call.items, "embeddings": {"float": floats}})


class Mistral(Emulator):
    """https://docs.mistral.ai/api/endpoint/embeddings"""

    name = "mistral"
    models = ("mistral-embed", "codestral-embed")
    max_items = 256
    max_tokens = 16_384
    idle: ClassVar[Mapping[str, object]] = {"metadata": {"a": "b"}, "output_dtype": "float"}
    refuses_unknown = True
    length_field = "output_dimension"
    length_model = "codestral-embed"
    is_half = True
    floats: ClassVar[Literal["shortest", "widened"]] = "widened"
    headers: ClassVar[Mapping[str, str]] = {
        "mistral-correlation-id": "1",
        "x-ratelimit-remaining-tokens-minute": "19990",
        "Set-Cookie": "__cf_bm=1; path=/",
    }
    retry_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1", "x-ratelimit-remaining-req-10-second": "0"}
    texts: ClassVar[Mapping[int, str]] = {
        400: "Too many inputs in request, split into more batches.",
        401: "Invalid API Key",
        429: "Requests rate limit exceeded",
        503: "Service tier capacity exceeded for this model.",
    }

    def error(self, status: int, message: str) -> Json:
        if status == 401:
            return {"detail": message}
        if status == 422:
            return {"detail": [{"loc": ["body"], "msg": message, "type": "extra_forbidden"}]}
        if status == 429:  # the gateway's
            return {"message": message}
        kind, code = ("invalid_model", "1500") if "model:" in message else ("invalid_request_prompt", "3210")
        said = {"object": "error", "message": message, "type": kind, "param": None}
        return said | {"code": code, "raw_status_code": status}

    def unknown_model(self, model: object) -> Refusal:
        return Refusal(400, f"Invalid model: {model}")

    def unknown_field(self, name: str) -> Refusal:
        return Refusal(422, f"{name}: Extra inputs are not permitted")

    def too_many(self, items: int) -> Refusal:
        return Refusal(400)

    def items(self, asked: Json) -> list[Any]:
        items = super().items(asked)
        if sum(map(self.tokens, items)) > self.max_tokens:
            raise Refusal(400, "Too many tokens overall, split into more batches.")
        return items

    def wanted_length(self, asked: Json) -> int:
        if asked.get("output_dimension") is not None and asked["model"] != self.length_model:
            raise Refusal(400, "This model does not support output_dimension.")
        return super().wanted_length(asked)

    def written(self, values: Numbers, asked: Json) -> Any:
        dtype = asked.get("output_dtype", "float")
        if dtype not in _DTYPES - {None}:
            raise Refusal(422, "output_dtype: Input should be 'float', 'int8', 'uint8', 'binary' or 'ubinary'")
        return super().written(quantised(values, dtype), asked)

    def datum(self, index: int, embedding: Any) -> Json:
        return {"object": "embedding", "embedding": embedding, "index": index}

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        usage = {
            "prompt_audio_seconds": None,
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
            "request_count": None,
            "prompt_token_details": None,
        }
        return {"id": "cc93", "object": "list", "data": data, "model": asked["model"], "usage": usage}

    def malformed(self, call: Call) -> web.Response:
        """All that an item has is optional by the schema."""
        return self.ok(self.envelope(call.json, [{"object": "embedding", "index": 0}, {}], 1))
