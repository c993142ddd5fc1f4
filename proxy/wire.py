"""OpenAI's embeddings JSON ↔ typed requests and answers (pure).

https://platform.openai.com/docs/api-reference/embeddings
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import orjson

from proxy import vectors
from proxy.providers import Fields
from proxy.vectors import InvalidVector, Vector

_LARGEST_EXACT_INTEGER = 2**53
_ESCAPED_COLON = re.compile(rb"\\u003[aA]")
# No provider takes more; and a short body that repeats a cached item would make an answer of any size.
_MAX_ITEMS = 2048
_MAX_DEPTH = 32  # of the JSON; what writes it again has limits of its own


class Bypass(Exception):
    """The proxy can't be certain what a request means: it goes upstream as it came and nothing is stored.

    ``reason`` is one of a few fixed words, fit for a metric label.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Encoding(Enum):
    FLOAT = "float"
    BASE64 = "base64"


class Kind(Enum):
    """What the items of a request are; all of one request are of one kind. The values go into keys."""

    TEXT = b"t"
    TOKENS = b"i"
    OBJECT = b"o"


class EmbeddingRequest(NamedTuple):  # a frozen dataclass takes three times as long to make
    """A request whose meaning is certain. ``items`` are in input order: str, list[int] or dict, by ``kind``."""

    model: str
    kind: Kind
    items: list[Any]
    encoding: Encoding
    parameters: dict[str, Any]  # the fields of class `key`, as given: null is not absent
    fields: dict[str, Any]  # the whole body
    body: bytes  # the same, as it came

    @property
    def dimensions(self) -> int | None:
        given = self.parameters.get("dimensions", self.parameters.get("output_dimension"))
        return given if type(given) is int else None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingAnswer:
    """A validated upstream answer: ``vectors[i]`` belongs to the i-th item sent."""

    vectors: list[Vector]
    model: str
    usage: dict[str, Any]  # as the upstream wrote it, both integers present


class InvalidAnswer(ValueError):
    """An upstream answer that must be neither stored nor taken apart. ``reason`` is fit for a metric label."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# --- requests


def parse_request(body: bytes, fields_known: Fields) -> EmbeddingRequest:
    """Read a request body. Raises `Bypass` where the meaning is not certain."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:  # bad UTF-8, lone surrogates and NaN among them
        raise Bypass("not-json") from None
    if type(fields) is not dict:
        raise Bypass("not-an-object")
    model = fields.get("model")
    if type(model) is not str:
        raise Bypass("model")
    kind, items = _items(fields.get("input"))
    encoding = _encoding(fields)
    _forbid_duplicate_keys(body, fields, kind, items)
    parameters = _parameters(fields, fields_known)
    return EmbeddingRequest(
        model=model,
        kind=kind,
        items=items,
        encoding=encoding,
        parameters=parameters,
        fields=fields,
        body=body,
    )


def _encoding(fields: dict[str, Any]) -> Encoding:
    match fields.get("encoding_format", "float"):
        case "float":
            return Encoding.FLOAT
        case "base64":
            return Encoding.BASE64
    raise Bypass("encoding-format")


def _items(given: Any) -> tuple[Kind, list[Any]]:
    if type(given) is str:
        given = [given]
    if type(given) is not list or not given:
        raise Bypass("input-form")
    types = set(map(type, given))
    if types == {int}:
        given, types = [given], {list}
    if len(given) > _MAX_ITEMS:
        raise Bypass("too-many-items")
    if types == {str}:
        if "" in given:
            raise Bypass("empty-item")
        return Kind.TEXT, given
    if types not in ({list}, {dict}):
        raise Bypass("input-form")
    kind, require = (Kind.TOKENS, _require_tokens) if types == {list} else (Kind.OBJECT, _require_content)
    for item in given:
        require(item)
    return kind, given


def _require_tokens(tokens: list[Any]) -> None:
    if not tokens:
        raise Bypass("empty-item")
    if set(map(type, tokens)) != {int}:
        raise Bypass("input-form")
    if min(tokens) < 0 or max(tokens) > _LARGEST_EXACT_INTEGER:
        raise Bypass("token-range")


def _require_content(item: dict[str, Any]) -> None:
    """OpenRouter's multimodal item, ``{"content": [part, …]}``, of parts that carry all they mean.

    https://openrouter.ai/docs/api-reference/embeddings: a part is ``{"type":"text","text":…}`` or
    ``{"type":"image_url","image_url":{"url":…}}``. What a remote URL shows can change, so only data URLs will do.
    """
    parts = item.get("content")
    if len(item) != 1 or type(parts) is not list or not parts:
        raise Bypass("input-form")
    for part in parts:
        match part:
            case {"type": "text", "text": str(), **rest} if not rest:
                continue
            case {"type": "image_url", "image_url": {"url": str(url), **more}, **rest} if not (rest or more):
                if not url[:5].lower() == "data:":
                    raise Bypass("remote-media")
            case _:
                raise Bypass("input-form")


def _parameters(fields: dict[str, Any], known: Fields) -> dict[str, Any]:
    parameters = {}
    for name, value in fields.items():
        if name in {"model", "input", "encoding_format"} or name in known.neutral:
            continue
        if name not in known.key:
            raise Bypass("unknown-field")
        if type(value) is list:
            # A list may be matched to the items by position (NVIDIA's `modality`), so a part of it means nothing.
            raise Bypass("list-parameter")
        if not _is_exact(value):
            raise Bypass("inexact-number")
        parameters[name] = value
    return parameters


def _is_exact(value: Any) -> bool:
    """False if a number in ``value`` may have lost digits: integers past 64 bits are parsed as floats."""
    if type(value) is dict:
        return all(map(_is_exact, value.values()))
    if type(value) is list:
        return all(map(_is_exact, value))
    return type(value) is not float or abs(value) < _LARGEST_EXACT_INTEGER


def _forbid_duplicate_keys(body: bytes, fields: dict[str, Any], kind: Kind, items: list[Any]) -> None:
    """The parser keeps the last of two equal keys in silence; an upstream may keep the first.

    Each pair of the document has one colon, and every other colon is inside a string. If the raw body has just as many
    as the parsed value accounts for, then no pair was dropped; unless an escaped colon made up for it, which has
    ``\\u003a`` in the raw body. Where the count leaves doubt the slow parser decides.
    """
    accounted = len(fields)
    for name, value in fields.items():
        accounted += name.count(":")
        if name != "input":
            accounted += _colons(value)
    if kind is Kind.TEXT:
        for text in items:
            accounted += text.count(":")
    elif kind is Kind.OBJECT:
        accounted += _colons(items)
    if body.count(b":") != accounted or _ESCAPED_COLON.search(body):
        json.loads(body, object_pairs_hook=_require_distinct)


def _colons(value: Any, depth: int = _MAX_DEPTH) -> int:
    if type(value) is str:
        return value.count(":")
    if type(value) not in {dict, list}:
        return 0
    if depth == 0:
        raise Bypass("too-deep")
    if type(value) is dict:
        return sum(1 + name.count(":") + _colons(inner, depth - 1) for name, inner in value.items())
    return sum(_colons(inner, depth - 1) for inner in value)


def _require_distinct(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise Bypass("duplicate-key")


def reduced_body(request: EmbeddingRequest, items: list[Any]) -> bytes:
    """The request's body asking for ``items`` alone, every other field as it was."""
    return orjson.dumps({**request.fields, "input": items})


# --- answers


def parse_answer(body: bytes, *, items: int, dimensions: int | None) -> EmbeddingAnswer:
    """Read a 200 of the embeddings route that was sent ``items`` items. Raises `InvalidAnswer`."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidAnswer("not-json") from None
    if type(answer) is not dict or answer.get("error") is not None:
        raise InvalidAnswer("error-in-200")
    found = _vectors(_in_order(answer.get("data"), items))
    if len({vector.dimensions for vector in found}) != 1:
        raise InvalidAnswer("mixed-dimensions")
    if dimensions is not None and found[0].dimensions != dimensions:
        raise InvalidAnswer("other-dimensions")
    model = answer.get("model")
    return EmbeddingAnswer(vectors=found, model=model if type(model) is str else "", usage=_usage(answer.get("usage")))


def _in_order(data: Any, items: int) -> list[dict[str, Any]]:
    """``data`` by its ``index``, never by position, unless there is no index at all."""
    if type(data) is not list or set(map(type, data)) - {dict}:
        raise InvalidAnswer("no-data")
    if len(data) != items:
        raise InvalidAnswer("count")
    indices = [datum.get("index") for datum in data]
    if all(index is None for index in indices):
        return data
    if set(map(type, indices)) != {int} or sorted(indices) != list(range(items)):
        raise InvalidAnswer("indices")
    ordered = data.copy()
    for index, datum in zip(indices, data, strict=True):
        ordered[index] = datum
    return ordered


def _vectors(data: list[dict[str, Any]]) -> list[Vector]:
    found = []
    for datum in data:
        embedding = datum.get("embedding")
        try:
            if type(embedding) is str:
                found.append(vectors.from_base64(embedding))
            elif type(embedding) is list:
                found.append(vectors.from_numbers(embedding))
            else:
                raise InvalidAnswer("no-embedding")
        except InvalidVector:
            raise InvalidAnswer("vector") from None
    return found


def _usage(given: Any) -> dict[str, Any]:
    """Both integers, whichever of them the upstream sent (Voyage: total only; Together: neither)."""
    usage = dict(given) if type(given) is dict else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "total_tokens")]
    known = [count if type(count) is int and count >= 0 else None for count in counts]
    fallback = next((count for count in known if count is not None), 0)
    for name, count in zip(("prompt_tokens", "total_tokens"), known, strict=True):
        usage[name] = fallback if count is None else count
    return usage


class _Openings:
    """The text before the i-th embedding of an answer, made once for each i."""

    def __init__(self) -> None:
        self._texts = [b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":']

    def first(self, count: int) -> list[bytes]:
        for index in range(len(self._texts), count):
            self._texts.append(b'},{"object":"embedding","index":%d,"embedding":' % index)
        return self._texts[:count]


_OPENINGS = _Openings()


def assemble(embeddings: Sequence[bytes], model: str, usage: dict[str, Any]) -> bytes:
    """An answer's body from the embeddings' JSON texts in index order; at least one."""
    count = len(embeddings)
    parts: list[bytes] = [b""] * (2 * count + 1)
    parts[0:-1:2] = _OPENINGS.first(count)
    parts[1::2] = embeddings
    parts[-1] = b'}],"model":%b,"usage":%b}' % (orjson.dumps(model), orjson.dumps(usage))
    return b"".join(parts)


def share_tokens(total: int, weights: Sequence[int]) -> list[int]:
    """Share ``total`` tokens over items by ``weights``, by largest remainder, so that the shares add up to it.

    No provider says what each item of a batch cost.
    """
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: total * weights[i] % whole, reverse=True)
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def weight(kind: Kind, item: Any) -> int:
    """What an item's share of the tokens goes by: tokens, or UTF-8 bytes of the text or canonical JSON."""
    if kind is Kind.TOKENS:
        return len(item)
    if kind is Kind.TEXT:
        return len(item.encode())
    return len(orjson.dumps(item))


def estimated_tokens(kind: Kind, item: Any) -> int:
    """Tokens of an item for keeping within an upstream's limit: exact for tokens, generous for text.

    A token of English is about four bytes and a token of most other scripts about three.
    """
    return len(item) if kind is Kind.TOKENS else weight(kind, item) // 3 + 1
