"""Hosted platforms that serve models of several makers."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import orjson
from aiohttp import web
from multidict import CIMultiDictProxy

from tests.support.emulators.base import KEY, Emulator, Json, Numbers, Refusal, quantised
from tests.support.scripted import Call


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
    acting: ClassVar[Mapping[str, tuple[object, object]]] = {"input_type": (None, "query")}
    refuses_unknown = False
    model_header: ClassVar[str] = "x-ms-model-mesh-model-name"
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
            model = asked.get("model", call.headers.get(self.model_header))
            if model not in self.deployments:
                raise Refusal(404)
            return asked | {"model": model}
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


class Together(Emulator):
    """https://docs.together.ai/reference/embeddings"""

    name = "together"
    models = ("togethercomputer/m2-bert-80M-32k-retrieval", "BAAI/bge-base-en-v1.5")
    idle: ClassVar[Mapping[str, object]] = {}
    length_field = None
    refuses_unknown = True
    headers: ClassVar[Mapping[str, str]] = {"x-ratelimit-remaining": "499"}
    retry_headers: ClassVar[Mapping[str, str]] = {"x-ratelimit-reset": "1", "x-tokenlimit-remaining": "0"}

    def unknown_field(self, name: str) -> Refusal:
        return Refusal(400, f"Unrecognized request arguments supplied: {name}")

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        """Without usage, as most of its models answer."""
        return {"object": "list", "data": data, "model": asked["model"]}

    def malformed(self, call: Call) -> web.Response:
        return self.ok(self.envelope(call.json, [self.datum(i, None) for i in (0, 1)], 1))


class Fireworks(Emulator):
    """https://docs.fireworks.ai/api-reference/creates-an-embedding-vector-representing-the-input-text"""

    name = "fireworks"
    base = "/inference/v1"
    target = "/inference/v1/embeddings"
    models = ("fireworks/qwen3-embedding-8b", "nomic-ai/nomic-embed-text-v1.5")
    acting: ClassVar[Mapping[str, tuple[object, object]]] = {
        "prompt_template": (None, "Embed this text: {text}"),
        "normalize": (None, False),
    }
    idle: ClassVar[Mapping[str, object]] = {}
    special = frozenset({"return_logits"})
    refuses_unknown = True
    renormalises = False
    base64: ClassVar[Literal["written", "ignored"]] = "ignored"
    floats: ClassVar[Literal["shortest", "widened"]] = "widened"
    headers: ClassVar[Mapping[str, str]] = {"X-Ratelimit-Limit-Tokens-Prompt": "60000"}
    retry_headers: ClassVar[Mapping[str, str]] = {"X-Ratelimit-Limit-Tokens-Prompt": "30000"}

    def error(self, status: int, message: str) -> Json:
        return {"error": {"object": "error", "type": "invalid_request_error", "code": "error", "message": message}}

    def unknown_field(self, name: str) -> Refusal:
        return Refusal(400, f"Extra inputs are not permitted, field: '{name}'")

    def unknown_encoding(self, encoding: object) -> None:
        pass

    def scaled(self, values: Numbers, asked: Json) -> Numbers:
        return super().scaled(values, asked) if asked.get("normalize") else values

    def wanted_length(self, asked: Json) -> int:
        logits = asked.get("return_logits")
        return len(logits) if logits else super().wanted_length(asked)

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"data": data, "model": asked["model"], "object": "list", "usage": usage}


class Gemini(Emulator):
    """https://ai.google.dev/gemini-api/docs/openai"""

    name = "gemini"
    base = "/v1beta/openai"
    target = "/v1beta/openai/embeddings"
    models = ("gemini-embedding-001", "models/gemini-embedding-001", "gemini-embedding-2", "gemini-embedding-2-preview")
    fused = frozenset({"gemini-embedding-2", "gemini-embedding-2-preview"})
    max_items = 100
    renormalises = False
    base64: ClassVar[Literal["written", "ignored"]] = "ignored"
    floats: ClassVar[Literal["shortest", "widened"]] = "widened"
    kinds: ClassVar[Mapping[int, str]] = {
        400: "INVALID_ARGUMENT",
        401: "UNAUTHENTICATED",
        404: "NOT_FOUND",
        429: "RESOURCE_EXHAUSTED",
        500: "INTERNAL",
        503: "UNAVAILABLE",
    }

    def check_key(self, headers: CIMultiDictProxy[str]) -> None:
        try:
            super().check_key(headers)
        except Refusal:
            raise Refusal(400, "API key not valid. Please pass a valid API key.") from None

    def ok(self, said: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
        return super().ok(orjson.dumps(said, option=orjson.OPT_INDENT_2) + b"\n", status=status, headers=headers)

    def error(self, status: int, message: str) -> Json:
        error: Json = {"code": status, "message": message, "status": self.kinds.get(status, "UNKNOWN")}
        if status == 429:
            retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "45s"}
            error["details"] = [retry]
        return {"error": error}

    def unknown_model(self, model: object) -> Refusal:
        return Refusal(
            404, f"models/{model} is not found for API version v1main, or is not supported for embedContent."
        )

    def too_many(self, items: int) -> Refusal:
        return Refusal(400, "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch\n")

    def weights(self, asked: Json) -> str:
        return super().weights(asked).removeprefix("models/")

    def datum(self, index: int, embedding: Any) -> Json:
        # Protocol buffers leave out what is zero.
        return {"object": "embedding"} | ({"index": index} if index else {}) | {"embedding": embedding}

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        return {"object": "list", "data": data, "model": asked["model"]}


class Nvidia(Emulator):
    """https://docs.nvidia.com/nim/nemo-retriever/text-embedding/latest/reference.html"""

    name = "nvidia"
    models = (
        "nvidia/nv-embedqa-e5-v5",
        "nvidia/nv-embedqa-e5-v5-query",
        "nvidia/nv-embedqa-e5-v5-passage",
        "nvidia/llama-3.2-nv-embedqa-1b-v2",
    )
    needed: ClassVar[Mapping[str, Any]] = {"input_type": "query"}
    acting: ClassVar[Mapping[str, tuple[object, object]]] = {
        "input_type": (None, "passage"),
        "truncate": ("NONE", "END"),
    }
    special = frozenset({"modality", "embedding_type"})
    refuses_unknown = True
    length_model = "nvidia/llama-3.2-nv-embedqa-1b-v2"

    def check_fields(self, asked: Json) -> None:
        suffixed = str(asked["model"]).endswith(("-query", "-passage"))
        if not suffixed and "input_type" not in asked:
            raise Refusal(400, "'input_type' parameter is required for asymmetric models")
        super().check_fields({"input_type": None} | asked)
        if asked.get("dimensions") is not None and asked["model"] != self.length_model:
            raise self.unknown_field("dimensions")

    def error(self, status: int, message: str) -> Json:
        """The model's own, or the gateway's before it."""
        return {"error": message} if status in {400, 422} else {"status": status, "title": message, "detail": message}

    def error_headers(self, status: int) -> Mapping[str, str]:
        return {"WWW-Authenticate": 'Bearer error="invalid_token"'} if status == 401 else {}

    def weights(self, asked: Json) -> str:
        return super().weights(asked).removesuffix("-query").removesuffix("-passage")

    def meaning(self, asked: Json) -> Json:
        _, dash, suffix = str(asked["model"]).rpartition("-")
        return super().meaning(asked) | ({"input_type": suffix} if suffix in {"query", "passage"} and dash else {})

    def vectors(self, asked: Json) -> list[Numbers]:
        modality, items = asked.get("modality", "text"), self.items(asked)
        each = modality if isinstance(modality, list) else [modality] * len(items)
        if len(each) != len(items):
            raise Refusal(400, "the length of modality must be that of input")
        return [
            super(Nvidia, self).vectors(asked | {"input": [item if kind == "text" else f"{kind}:{item}"]})[0]
            for item, kind in zip(items, each, strict=True)
        ]

    def written(self, values: Numbers, asked: Json) -> Any:
        return super().written(quantised(values, asked.get("embedding_type")), asked)

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        return super().envelope(asked | {"model": self.weights(asked)}, data, tokens)

    def pending(self, _: Call) -> web.Response:
        """No vector yet: its functions can tell one to ask again."""
        return self.ok(b"", status=202, headers={"NVCF-REQID": "1", "NVCF-STATUS": "pending-evaluation"})
