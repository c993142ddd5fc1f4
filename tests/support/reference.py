"""An upstream whose response is a pure function of the call: what a request gets from it alone can be computed.

A vector depends on everything that may matter to one: the tenant, the path, the model, the item, each field and header
that is not known to be neutral, and, where a field relates the items to each other, on all of them. So does a failure.
Every response quotes the call, in its body and its head, so that a response that reaches the wrong client can be seen.
"""

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import Any
from urllib.parse import quote

import orjson
import pybase64

from tests.support.reference_models import FLAGGED, MODELS, Model

HELD_KEY = "held"  # the key of a proxy that has one
DIMENSIONS, LONG_DIMENSIONS, MAX_DIMENSIONS = 4, 8, 16
# Header fields that choose what computes the vector.
ROUTING_HEADERS = frozenset(
    {
        "extra-parameters",
        "openai-organization",
        "x-litellm-tags",
        "x-model-deployment",
        "x-portkey-config",
        "x-portkey-metadata",
        "x-tfy-metadata",
    }
)
# Body fields that no vector depends on.
_NEUTRAL = frozenset(
    {
        "model", "input", "encoding_format", "user",
        "drop_params", "extra_body", "keep_alive", "metadata", "stream", "timeout",
    }
)  # fmt: skip
# Body fields by which an item's vector depends on the other items.
_CROSS_ITEM = frozenset({"late_chunking", "x_context"})
_MARK = re.compile(r"\b(?:BAD-(\d{3})|CRASH-HEAD|CRASH-BODY|ERROR-IN-200|FLAG-246|LONG|NULL|ZERO)\b")


class Cut(Enum):
    """Where the upstream cuts the connection."""

    BEFORE_HEAD = "before the head"
    IN_BODY = "in the body"


class Regime(Enum):
    """How the upstream responds to every call for a while."""

    NORMAL = "normal"
    ERROR = "500"
    OVERLOADED = "503"
    LIMITED = "429"
    CUT = "cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A call as the upstream sees it; the names of ``headers`` are in lower case."""

    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def tenant(self) -> str | None:
        given = self.headers.get("authorization", "").removeprefix("Bearer ")
        return given or self.headers.get("api-key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: Cut | None = None

    def __repr__(self) -> str:
        if self.cut is not None:
            return f"a connection cut {self.cut.value}"
        return f"{self.status} {self.body.decode(errors='replace')} {dict(self.headers)}"


class _Fault(Exception):
    def __init__(self, status: int, why: str, *, at: int | None = None, cut: Cut | None = None) -> None:
        super().__init__(why)
        self.status, self.why, self.at, self.cut = status, why, at, cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """``tells_tenants_apart``: the same item has another vector for each tenant."""

    tells_tenants_apart: bool

    def reply(self, asked: Asked, regime: Regime = Regime.NORMAL, *, has_limits: bool = True) -> Reply:
        """The response to a call; ``has_limits=False``: were there no limits to a call's form and size."""
        fields: dict[str, Any] = {}
        try:
            _fail_as(regime)
            _require_tenant(asked)
            fields = _read(asked.body)
            model = _model(asked, fields)
            if has_limits:
                _require_size(model, fields["input"], asked.body)
            return self._good(asked, fields, model)
        except _Fault as fault:
            return _failure(asked, fields, fault)

    def _good(self, asked: Asked, fields: dict[str, Any], model: Model) -> Reply:
        items = _items(fields["input"])
        marks = [_MARK.search(item) if type(item) is str else None for item in items]
        for at, mark in enumerate(marks):
            _fail_on(mark[0] if mark else "", at)
        if model.is_queued:
            return Reply(status=model.status, headers=_head(fields), body=_json({"id": "job", "of": fields}))
        common = self._common(asked, fields, items)
        data = [
            _datum(common, model, fields, item, at, mark[0] if mark else "")
            for at, (item, mark) in enumerate(zip(items, marks, strict=True))
        ]
        tokens = sum(len(str(item)) for item in items)
        answer = {
            "object": "list",
            "data": data[::-1] if model.is_reversed else data,
            "model": model.answers_as or fields["model"],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        if model.has_echo:
            answer |= {"id": blake2b(asked.body, digest_size=8).hexdigest(), "echo": fields["input"]}
        status = FLAGGED if any(mark and mark[0] == "FLAG-246" for mark in marks) else model.status
        return Reply(status=status, headers=_head(fields), body=_json(answer))

    def _common(self, asked: Asked, fields: dict[str, Any], items: list[Any]) -> list[Any]:
        """What all vectors of a response depend on."""
        is_joint = any(fields.get(name) for name in _CROSS_ITEM) or len(set(map(type, items))) > 1
        return [
            asked.tenant if self.tells_tenants_apart else None,
            asked.target,
            fields["model"],
            {name: value for name, value in fields.items() if name not in _NEUTRAL},
            {name: value for name, value in asked.headers.items() if name in ROUTING_HEADERS},
            items if is_joint else None,
        ]


def _read(body: bytes) -> dict[str, Any]:
    """It keeps the first of two equal keys, and most parsers the last."""
    try:
        is_twofold = any(body.count(b'"%b"' % name) > 1 for name in (b"model", b"input"))
        fields = json.loads(body, object_pairs_hook=_first_of_equals) if is_twofold else orjson.loads(body)
    except ValueError:
        raise _Fault(400, "not JSON") from None
    if type(fields) is not dict or type(fields.get("model")) is not str:
        raise _Fault(400, "no model")
    given = fields.get("input")
    is_known = type(given) is str or (
        type(given) is list and given and (_is_tokens(given) or all(map(_is_item, given)))
    )
    if not is_known:
        raise _Fault(400, "no input")
    if fields.get("encoding_format", "float") not in {None, "float", "base64"}:
        raise _Fault(400, "no such encoding")
    if fields.get("stream"):
        raise _Fault(400, "no streams")
    return fields


def _first_of_equals(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _is_tokens(given: Any) -> bool:
    return type(given) is list and bool(given) and set(map(type, given)) == {int}


def _is_item(given: Any) -> bool:
    return type(given) is str or _is_tokens(given)


def _items(given: Any) -> list[Any]:
    return given if type(given) is list and not _is_tokens(given) else [given]


def _fail_as(regime: Regime) -> None:
    match regime:
        case Regime.ERROR:
            raise _Fault(500, "down")
        case Regime.OVERLOADED:
            raise _Fault(503, "overloaded")
        case Regime.LIMITED:
            raise _Fault(429, "too many requests")
        case Regime.CUT:
            raise _Fault(0, "down", cut=Cut.BEFORE_HEAD)


def _require_tenant(asked: Asked) -> None:
    match asked.tenant:
        case None | "expired":
            raise _Fault(401, "no such key")
        case "limited":
            raise _Fault(429, "too many requests")


def _model(asked: Asked, fields: dict[str, Any]) -> Model:
    model = MODELS.get(fields["model"])
    if model is None:
        raise _Fault(404, "no such model")
    if model.overload:
        raise _Fault(model.overload, "overloaded")
    if model.denies_guests and asked.tenant == "guest":
        raise _Fault(model.denies_guests, "not for guests")
    return model


def _require_size(model: Model, given: Any, body: bytes) -> None:
    if model.list_refusal and type(given) is list:
        raise _Fault(model.list_refusal, "one text at a time")
    if len(_items(given)) > model.max_items or len(body) > model.max_bytes:
        raise _Fault(model.size_refusal, "too large")


def _fail_on(mark: str, at: int) -> None:
    if mark.startswith("BAD-"):
        raise _Fault(int(mark.removeprefix("BAD-")), "bad text", at=at)
    if mark == "ERROR-IN-200":
        raise _Fault(200, "bad text", at=at)
    if mark == "CRASH-HEAD":
        raise _Fault(0, "crash", cut=Cut.BEFORE_HEAD)
    if mark == "CRASH-BODY":
        raise _Fault(0, "crash", cut=Cut.IN_BODY)


def _datum(common: list[Any], model: Model, fields: dict[str, Any], item: Any, at: int, mark: str) -> dict[str, Any]:
    place = at if common[-1] is not None else None
    seed = orjson.dumps([common, place, item], option=orjson.OPT_SORT_KEYS)
    asked = fields.get("dimensions") or 0
    length = DIMENSIONS if model.ignores_dimensions or not 0 < asked <= MAX_DIMENSIONS else asked
    payload = _float32s(seed, LONG_DIMENSIONS if mark == "LONG" else length)
    embedding: Any = struct.unpack(f"<{len(payload) // 4}f", payload)
    if fields.get("encoding_format") == "base64" and not model.ignores_encoding:
        embedding = pybase64.b64encode(bytes(len(payload)) if mark == "ZERO" else payload).decode()
    elif mark == "ZERO":
        embedding = [0.0] * len(embedding)
    datum = {"object": "embedding", "index": at, "embedding": None if mark == "NULL" else embedding}
    if model.indices == "none" or (model.indices == "nonzero" and at == 0):
        del datum["index"]
    if model.has_extras:
        datum |= {"tokens": len(str(item)), "sparse": {"0": payload[0]}}
    return datum


def _float32s(seed: bytes, count: int) -> bytes:
    """Little-endian, of magnitudes in [0.5, 1), so finite and not zero."""
    words = struct.unpack(f"<{count}I", blake2b(seed, digest_size=4 * count).digest())
    return struct.pack(f"<{count}I", *((word & 0x807FFFFF) | 0x3F000000 for word in words))


def _failure(asked: Asked, fields: dict[str, Any], fault: _Fault) -> Reply:
    if fault.cut is not None:
        return Reply(status=200, headers={"Content-Length": "1000"}, body=b'{"object":', cut=fault.cut)
    told = {
        "message": f"{fault.why} while embedding {asked.body.decode(errors='replace')}",
        "at": fault.at,
        "user": fields.get("user"),
        "note": asked.headers.get("x-note"),
        "code": fault.status if fault.status != 200 else 400,
    }
    head = _head(fields)
    if fault.status in {429, 503, 529}:
        head["Retry-After"] = "7"
    return Reply(status=fault.status, headers=head, body=_json({"error": told}))


def _head(fields: dict[str, Any]) -> dict[str, str]:
    quoted = json.dumps([fields.get("input"), fields.get("user")])
    return {
        "Content-Type": "application/json",
        "X-Debug-Input": quoted,
        "Set-Cookie": f"last={quote(quoted, safe='')}",
        "X-Ratelimit-Remaining-Requests": "3",
    }


def _json(value: Any) -> bytes:
    return orjson.dumps(value)
