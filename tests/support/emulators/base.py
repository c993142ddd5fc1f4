"""The common base of the emulators of providers.

They are written from the providers' documentation and know nothing of the proxy's table of providers, which is what
they are there to test.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, ClassVar, Literal

import numpy as np
import orjson
import pybase64
from aiohttp import web
from multidict import CIMultiDictProxy
from numpy.typing import NDArray

from tests.support.scripted import Call, Reply, vector

Json = dict[str, Any]
Numbers = NDArray[Any]

KEY = "sk-test"

_USUAL_TEXTS = {
    400: "Invalid request",
    401: "Invalid API key",
    402: "Insufficient credits",
    403: "Forbidden",
    404: "Not found",
    422: "Validation error",
    429: "Rate limit exceeded",
    500: "Internal server error",
    503: "Service unavailable",
    529: "Overloaded",
}


class Refusal(Exception):
    """What a request gets instead of vectors; without a message, the provider's usual one for the status."""

    def __init__(self, status: int, message: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Emulator:
    """An embeddings API. It keeps no state; what a subclass leaves unsaid is as OpenAI documents it."""

    name: ClassVar[str]
    base: ClassVar[str] = "/v1"  # the path of the base URL that one gives an SDK
    target: ClassVar[str] = "/v1/embeddings"  # where calls arrive
    client_target: ClassVar[str] = "/v1/embeddings"  # where a client of the proxy sends them
    credentials: ClassVar[Mapping[str, str]] = {"Authorization": f"Bearer {KEY}"}
    models: ClassVar[tuple[str, ...]] = ()  # the first is what tests ask for; none: any name will do
    native: ClassVar[int] = 16  # dimensions
    needed: ClassVar[Mapping[str, Any]] = {}  # fields without which a request is refused

    takes_text: ClassVar[bool] = True  # without a list around it
    takes_tokens: ClassVar[bool] = False
    takes_empty: ClassVar[bool] = False
    max_items: ClassVar[int] = 2048
    acting: ClassVar[Mapping[str, tuple[object, object]]] = {}  # change the vector -> what absence means, another value
    idle: ClassVar[Mapping[str, object]] = {"user": "u"}  # documented, and change nothing -> a value
    special: ClassVar[frozenset[str]] = frozenset()  # documented, with an effect that the subclass knows
    refuses_unknown: ClassVar[bool] = False
    invalid: ClassVar[int] = 400  # the status of a request that is wrong in itself

    length_field: ClassVar[str | None] = "dimensions"
    length_model: ClassVar[str | None] = None  # where other models have but one length
    length: ClassVar[int] = 8  # what tests ask for
    lengths: ClassVar[frozenset[int]] = frozenset()  # all there are; none: any up to the native one
    renormalises: ClassVar[bool] = True
    is_half: ClassVar[bool] = False  # float16 inside
    fused: ClassVar[frozenset[str]] = frozenset()  # models that make one vector of all the items

    encoding_field: ClassVar[str] = "encoding_format"
    takes_float: ClassVar[bool] = True  # as a value of that field
    base64: ClassVar[Literal["written", "ignored"]] = "written"
    # How floats are written: as the shortest text of the float32, or of that widened to float64.
    floats: ClassVar[Literal["shortest", "widened"]] = "shortest"

    texts: ClassVar[Mapping[int, str]] = {}  # what it says with a status
    headers: ClassVar[Mapping[str, str]] = {}  # of good answers
    retry_headers: ClassVar[Mapping[str, str]] = {}  # of a 429

    # --- what it answers

    def answer(self, call: Call) -> web.Response:
        try:
            self.check_path(call.target.partition("?")[0])
            self.check_key(call.headers)
            return self.embed(self.read(call))
        except Refusal as refusal:
            return self.refuse(refusal.status, refusal.message)

    def failing(self, status: int) -> Reply:
        """Answers every call with a status, in the form and with the headers that this provider's have."""
        return lambda _: self.refuse(status)

    def malformed(self, call: Call) -> web.Response:
        """A 200 that is none: by default a vector is missing."""
        asked = self.read(call)
        return self.ok(self.envelope(asked, self.data(asked)[:-1], tokens=1))

    def refuse(self, status: int, message: str | None = None) -> web.Response:
        said = self.error(status, message or self.texts.get(status) or _USUAL_TEXTS[status])
        response = self.ok(said, status=status, headers=self.error_headers(status))
        if isinstance(said, bytes):
            response.content_type = "text/plain"
        return response

    def ok(self, said: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
        body = said if isinstance(said, bytes) else orjson.dumps(said)
        fields = {"Content-Type": "application/json"} | dict(self.headers if headers is None else headers)
        return web.Response(status=status, body=body, headers=fields)

    def error(self, status: int, message: str) -> Json | bytes:
        """The body of an error; bytes are plain text."""
        kind = "invalid_request_error" if status < 500 else "server_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": None}}

    def error_headers(self, status: int) -> Mapping[str, str]:
        return self.retry_headers if status == 429 else {}

    # --- what it checks

    def check_path(self, path: str) -> None:
        if path != self.target.partition("?")[0]:
            raise Refusal(404)

    def check_key(self, headers: CIMultiDictProxy[str]) -> None:
        if any(headers.get(name) != value for name, value in self.credentials.items()):
            raise Refusal(401)

    def read(self, call: Call) -> Json:
        """The request's body, checked but for the items."""
        asked = call.json
        self.check_model(asked)
        self.check_fields(asked)
        encoding = asked.get(self.encoding_field)
        if encoding not in {None, "base64", "float"} or (encoding == "float" and not self.takes_float):
            self.unknown_encoding(encoding)
        return asked

    def check_model(self, asked: Json) -> None:
        if self.models and asked.get("model") not in self.models:
            raise self.unknown_model(asked.get("model"))

    def check_fields(self, asked: Json) -> None:
        for name in self.needed:
            if name not in asked:
                raise Refusal(self.invalid, f"{name} is required")
        known = {"model", "input", self.encoding_field, self.length_field, *self.acting, *self.idle, *self.special}
        if self.refuses_unknown and (unknown := sorted(set(asked) - known)):
            raise self.unknown_field(unknown[0])

    def unknown_model(self, model: object) -> Refusal:
        return Refusal(404, f"The model `{model}` does not exist")

    def unknown_field(self, name: str) -> Refusal:
        return Refusal(self.invalid, f"Unrecognized request argument supplied: {name}")

    def unknown_encoding(self, encoding: object) -> None:
        raise Refusal(self.invalid, f"Invalid value for '{self.encoding_field}': {encoding}")

    def too_many(self, items: int) -> Refusal:
        return Refusal(self.invalid, f"{items} items are more than {self.max_items}")

    def items(self, asked: Json) -> list[Any]:
        given = asked.get("input")
        items = given if isinstance(given, list) else [given]
        if isinstance(given, str) and not self.takes_text:
            raise Refusal(self.invalid, "'input' must be a list")
        if self.takes_tokens and items and all(isinstance(item, int) for item in items):
            items = [given]
        if not items or not all(map(self.takes, items)):
            raise Refusal(self.invalid, "'$.input' is invalid.")
        if len(items) > self.max_items:
            raise self.too_many(len(items))
        return items

    def takes(self, item: Any) -> bool:
        if isinstance(item, str):
            return self.takes_empty or bool(item)
        is_tokens = isinstance(item, list) and item and all(isinstance(token, int) for token in item)
        return self.takes_tokens and bool(is_tokens)

    # --- what it makes of a request

    def embed(self, asked: Json) -> web.Response:
        tokens = sum(self.tokens(item) for item in self.items(asked))
        return self.ok(self.envelope(asked, self.data(asked), tokens))

    def tokens(self, item: Any) -> int:
        return len(item) if isinstance(item, list) else len(str(item)) // 4 + 1

    def data(self, asked: Json) -> list[Json]:
        return [self.datum(i, self.written(values, asked)) for i, values in enumerate(self.vectors(asked))]

    def vectors(self, asked: Json) -> list[Numbers]:
        weights, meaning, length = self.weights(asked), self.meaning(asked), self.wanted_length(asked)
        items = [self.seen(item) for item in self.items(asked)]
        if weights in self.fused:
            items = [items]
        return [self.cut(self.scaled(vector(weights, [item, meaning], self.native), asked), length) for item in items]

    def seen(self, item: Any) -> Any:
        """What the model gets of an item."""
        return item

    def scaled(self, values: Numbers, asked: Json) -> Numbers:
        """What comes out of the model."""
        return unit(values)

    def weights(self, asked: Json) -> str:
        """The name under which the model itself goes."""
        return str(asked.get("model"))

    def meaning(self, asked: Json) -> Json:
        """What of the fields has an effect."""
        said = {name: asked.get(name) for name in self.acting}
        return {name: value for name, value in said.items() if value is not None and value != self.acting[name][0]}

    def wanted_length(self, asked: Json) -> int:
        wanted = asked.get(self.length_field) if self.length_field else None
        if wanted is None:
            return self.native
        if not (wanted in self.lengths if self.lengths else 1 <= wanted <= self.native):
            raise Refusal(self.invalid, f"{self.length_field} {wanted} is not supported")
        return int(wanted)

    def cut(self, values: Numbers, length: int) -> Numbers:
        values = unit(values[:length]) if self.renormalises and length < len(values) else values[:length]
        return values.astype(np.float16).astype(np.float32) if self.is_half else values

    def written(self, values: Numbers, asked: Json) -> Any:
        if self.base64 == "written" and asked.get(self.encoding_field) == "base64":
            return packed(values)
        return numbers(values, self.floats)

    def datum(self, index: int, embedding: Any) -> Json:
        return {"object": "embedding", "index": index, "embedding": embedding}

    def envelope(self, asked: Json, data: list[Json], tokens: int) -> Json:
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": asked["model"], "usage": usage}


def unit(values: Numbers) -> Numbers:
    scaled: Numbers = (values / np.linalg.norm(values)).astype(np.float32)
    return scaled


def numbers(values: Numbers, floats: str = "shortest") -> list[Any]:
    if values.dtype != np.float32 or floats == "widened":
        written: list[Any] = values.astype(np.float64 if values.dtype == np.float32 else np.int64).tolist()
        return written
    return [float(str(value)) for value in values]


def packed(values: Numbers) -> str:
    return pybase64.b64encode(values.tobytes()).decode()


def quantised(values: Numbers, dtype: object) -> Numbers:
    """The integer types that several providers offer; the two binary ones hold eight dimensions in each number."""
    scaled, bits = np.round(values * 127), np.packbits(values > 0).astype(np.int16)
    made: Mapping[object, Numbers] = {
        "int8": scaled.astype(np.int8),
        "uint8": (scaled + 128).astype(np.uint8),
        "binary": (bits - 128).astype(np.int8),
        "ubinary": bits.astype(np.uint8),
    }
    return made.get(dtype, values)


def request_id(asked: Any) -> str:
    """The same for the same body, so that a relayed answer can be held against a direct one."""
    return blake2b(orjson.dumps(asked), digest_size=8).hexdigest()
