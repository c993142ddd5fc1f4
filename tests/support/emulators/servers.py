"""Self-hosted servers."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import orjson
from aiohttp import web
from multidict import CIMultiDictProxy

from tests.support.emulators.base import Emulator, Json, Numbers, Refusal, numbers, packed, request_id
from tests.support.scripted import Call


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


class Vllm(Emulator):
    """https://docs.vllm.ai/en/latest/serving/openai_compatible_server/"""

    name = "vllm"
    models = ("BAAI/bge-m3", "bge")
    takes_tokens = True
    takes_empty = True
    acting: ClassVar[Mapping[str, tuple[object, object]]] = {
        "add_special_tokens": (True, False),
        "truncate_prompt_tokens": (None, 2),
        "truncation_side": (None, "left"),
        "use_activation": (None, False),
        "padding": (None, "max_length"),
        "normalize": (None, False),  # of older releases
    }
    idle: ClassVar[Mapping[str, object]] = {
        "user": "u",
        "request_id": "r",
        "priority": 0,
        "cache_salt": "s",
        "embed_dtype": "float32",
        "endianness": "native",
    }
    floats: ClassVar[Literal["shortest", "widened"]] = "widened"
    dtypes: ClassVar[Mapping[object, str]] = {"float32": "f4", "float16": "f2"}

    def read(self, call: Call) -> Json:
        asked = super().read(call)
        # A conversation is one item.
        return asked | {"input": orjson.dumps(asked["messages"]).decode()} if "messages" in asked else asked

    def check_model(self, asked: Json) -> None:
        if asked.get("model") is not None:
            super().check_model(asked)

    def unknown_encoding(self, encoding: object) -> None:
        if encoding not in {"bytes", "bytes_only"}:
            super().unknown_encoding(encoding)

    def error(self, status: int, message: str) -> Json:
        if status == 401:
            return {"error": "Unauthorized"}
        kind = {400: "BadRequestError", 404: "NotFoundError"}.get(status, "InternalServerError")
        return {"error": {"message": message, "type": kind, "param": None, "code": status}}

    def weights(self, _: Json) -> str:
        return self.models[0]

    def embed(self, asked: Json) -> web.Response:
        if asked.get("encoding_format") != "bytes":
            return super().embed(asked)
        body = b"".join(values.tobytes() for values in self.vectors(asked))
        return self.ok(body, headers={"Content-Type": "application/octet-stream", "metadata": "{}"})

    def written(self, values: Numbers, asked: Json) -> Any:
        if asked.get("encoding_format") != "base64":
            return super().written(values, asked)
        order = ">" if asked.get("endianness") == "big" else "<"
        return packed(values.astype(order + self.dtypes[asked.get("embed_dtype", "float32")]))

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
        data = [{"index": datum["index"]} | datum for datum in data]
        said = {"id": f"embd-{request_id(asked)}", "object": "list", "created": 1720000000, "model": self.models[0]}
        return said | {"data": data, "usage": usage}


class Infinity(Emulator):
    """https://michaelfeil.eu/infinity/"""

    name = "infinity"
    base = ""
    target = "/embeddings"
    takes_empty = True
    special = frozenset({"modality"})
    invalid = 422
    renormalises = False
    floats: ClassVar[Literal["shortest", "widened"]] = "widened"

    def error(self, status: int, message: str) -> Json:
        if status == 401:
            return {"detail": "Unauthorized"}
        if status == 422:
            return {"detail": [{"type": "value_error", "loc": ["body", "text", "input"], "msg": message}]}
        return {"error": {"message": message, "type": None, "param": None, "code": status}}

    def error_headers(self, status: int) -> Mapping[str, str]:
        return {"WWW-Authenticate": "Bearer"} if status == 401 else {}

    def late_interaction(self, call: Call) -> web.Response:
        """What a server of one such model answers, whatever model is named: in base64 its vectors run together."""
        asked = self.read(call)
        data = [self.datum(i, packed(np.concatenate([values, values]))) for i, values in enumerate(self.vectors(asked))]
        return self.ok(self.envelope(asked, data, 1) | {"model": "vidore/colpali-v1.2-merged"})

    def weights(self, asked: Json) -> str:
        return f"served {asked.get('modality', 'text')}"

    def seen(self, item: Any) -> Any:
        return item.strip()

    def tokens(self, item: Any) -> int:
        return len(item.strip())

    def wanted_length(self, asked: Json) -> int:
        wanted = asked.get("dimensions", 0)
        if wanted and not 1 <= wanted <= self.native:
            raise Refusal(400, f"matryoshka_dim={wanted} is not in a valid range. Select between 1 and {self.native}.")
        return wanted or self.native

    def datum(self, index: int, embedding: Any) -> Json:
        return {"object": "embedding", "embedding": embedding, "index": index}

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        said = super().envelope(asked | {"model": "BAAI/bge-small-en-v1.5"}, data, tokens)
        return said | {"id": f"infinity-{request_id(asked)}", "created": 1720000000}

    def malformed(self, call: Call) -> web.Response:
        """A vector for each token, as its ColBERT models answer."""
        asked = call.json
        data = self.data(asked)
        for datum in data:
            datum["embedding"] = [datum["embedding"], datum["embedding"]]
        return self.ok(self.envelope(asked, data, 1))


class Ollama(Emulator):
    """https://docs.ollama.com/api/openai-compatibility"""

    name = "ollama"
    models = ("all-minilm", "nomic-embed-text")
    takes_empty = True
    texts: ClassVar[Mapping[int, str]] = {
        404: "model 'x' not found",
        503: "server busy, please try again.  maximum pending requests exceeded",
    }

    def answer(self, call: Call) -> web.Response:
        if call.target == "/api/embeddings":  # its own API
            return self.ok(
                {"embedding": numbers(self.vectors({"model": self.models[0], "input": call.json["prompt"]})[0])}
            )
        return super().answer(call)

    def check_key(self, _: CIMultiDictProxy[str]) -> None:
        """It takes any."""

    def error(self, status: int, message: str) -> Json:
        kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
        return {"error": {"message": message, "type": kind, "param": None, "code": None}}

    def ok(self, said: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
        return super().ok(orjson.dumps(said) + b"\n", status=status, headers=headers)

    def wanted_length(self, asked: Json) -> int:
        wanted = asked.get("dimensions")
        return wanted if wanted is not None and 0 < wanted < self.native else self.native

    def datum(self, index: int, embedding: Any) -> Json:
        return {"object": "embedding", "embedding": embedding, "index": index}

    def malformed(self, _: Call) -> web.Response:
        return self.ok({"object": "", "data": None, "model": "", "usage": {"prompt_tokens": 0, "total_tokens": 0}})


class LlamaCpp(Emulator):
    """https://github.com/ggml-org/llama.cpp/tree/master/tools/server"""

    name = "llamacpp"
    takes_tokens = True
    acting: ClassVar[Mapping[str, tuple[object, object]]] = {"embd_normalize": (2, -1)}
    idle: ClassVar[Mapping[str, object]] = {"user": "u"}
    length_field = None
    floats: ClassVar[Literal["shortest", "widened"]] = "widened"
    texts: ClassVar[Mapping[int, str]] = {401: "Invalid API Key", 404: "File Not Found", 503: "Loading model"}
    kinds: ClassVar[Mapping[int, str]] = {
        400: "invalid_request_error",
        401: "authentication_error",
        404: "not_found_error",
        503: "unavailable_error",
    }

    def answer(self, call: Call) -> web.Response:
        if call.target == "/embeddings":  # its own API
            vectors = self.vectors({"model": "m", "input": call.json["content"]})
            return self.ok([{"index": i, "embedding": [numbers(values)]} for i, values in enumerate(vectors)])
        return super().answer(call)

    def error(self, status: int, message: str) -> Json | bytes:
        if status == 500:
            return b"Internal Server Error"
        return {"error": {"code": status, "message": message, "type": self.kinds.get(status, "server_error")}}

    def items(self, asked: Json) -> list[Any]:
        given = asked.get("input")
        is_one_prompt = isinstance(given, list) and any(isinstance(part, int) for part in given)
        return [given] if is_one_prompt else super().items(asked)

    def data(self, asked: Json) -> list[Json]:
        data = [{"embedding": datum["embedding"]} | datum for datum in super().data(asked)]
        if asked.get("encoding_format") == "base64":
            data = [datum | {"encoding_format": "base64"} for datum in data]
        return data

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"model": asked.get("model", "loaded"), "object": "list", "usage": usage, "data": data}

    def weights(self, _: Json) -> str:
        return "loaded"


class LmStudio(Emulator):
    """https://lmstudio.ai/docs/developer/openai-compat"""

    name = "lmstudio"
    models = ("text-embedding-bge-m3", "text-embedding-nomic-embed-text-v1.5")
    idle: ClassVar[Mapping[str, object]] = {"user": "u", "ttl": 60}
    length_field = None
    base64: ClassVar[Literal["written", "ignored"]] = "ignored"
    floats: ClassVar[Literal["shortest", "widened"]] = "widened"
    headers: ClassVar[Mapping[str, str]] = {"X-Powered-By": "Express"}
    texts: ClassVar[Mapping[int, str]] = {
        400: "No models loaded. Please load a model in the developer page or use the 'lms load' command.",
        401: "An LM Studio API token is required to make requests to this server, but none was provided",
    }

    def answer(self, call: Call) -> web.Response:
        if call.target == "/api/v1/chat":  # its own API
            return self.ok({"output": [{"type": "message", "content": call.json["input"]}]})
        return super().answer(call)

    def check_path(self, path: str) -> None:
        if path != self.target:
            raise Refusal(200, f"Unexpected endpoint or method. (POST {path})")

    def unknown_encoding(self, encoding: object) -> None:
        pass

    def error(self, status: int, message: str) -> Json:
        if status in {200, 400}:
            return {"error": message}
        kind, code = ("invalid_request", "invalid_api_key") if status == 401 else ("invalid_request_error", "error")
        return {"error": {"type": kind, "code": code, "message": message}}

    def datum(self, index: int, embedding: Any) -> Json:
        return {"object": "embedding", "embedding": embedding, "index": index}

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        return super().envelope(asked, data, 0)

    def malformed(self, _: Call) -> web.Response:
        return self.refuse(200, "Unexpected endpoint or method. (POST /v1/embeddings)")
