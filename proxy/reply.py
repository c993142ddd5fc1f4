"""What an upstream replied ↔ validated vectors, and the body of an answer made from stored ones (pure).

https://platform.openai.com/docs/api-reference/embeddings
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from proxy import vectors
from proxy.providers import Provider
from proxy.vectors import DType, InvalidVector, Vector

_LARGEST_EXACT_INTEGER = 2**53
_REBUILT = frozenset({"object", "data", "model", "usage", "error"})  # fields of an answer
_OK, _UNKNOWN_ERROR = 200, 400
_MAX_ERROR = 64 * 1024  # bytes of an error


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingAnswer:
    """A validated upstream answer: ``vectors[i]`` belongs to the i-th item sent."""

    vectors: list[Vector]
    model: str
    usage: dict[str, Any]  # as the upstream wrote it, both integers present
    told: dict[str, Any]  # its other fields


class InvalidAnswer(ValueError):
    """An upstream answer that must be neither stored nor taken apart. ``reason`` is fit for a metric label."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def error_status(body: bytes) -> int:
    """The status in a 200 that is an error, as OpenRouter sends; 200 for any other."""
    if len(body) > _MAX_ERROR or b'"error"' not in body:
        return _OK
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _OK
    error = answer.get("error") if type(answer) is dict else None
    if error is None:
        return _OK
    code = error.get("code") if type(error) is dict else None
    return code if type(code) is int and code != _OK else _UNKNOWN_ERROR


def is_error(body: bytes) -> bool:
    """Whether a 200 is an error."""
    return error_status(body) != _OK


def parse_answer(
    body: bytes, provider: Provider, *, items: int, length: int | None = None, packed: DType | None = None
) -> EmbeddingAnswer:
    """Read a 200 of ``provider``, which was sent ``items`` items; each vector shall have ``length`` numbers, if that is
    known, of a ``packed`` type, if that was asked for. Raises `InvalidAnswer`."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidAnswer("not-json") from None
    if type(answer) is not dict or answer.get("error") is not None:
        raise InvalidAnswer("error-in-200")
    found = _vectors(_in_order(answer.get("data"), items), provider, packed)
    if len({vector.dimensions for vector in found}) != 1:
        raise InvalidAnswer("mixed-dimensions")
    if length is not None and found[0].dimensions != length:
        raise InvalidAnswer("other-dimensions")
    model = answer.get("model")
    told = {name: value for name, value in answer.items() if name not in _REBUILT}
    return EmbeddingAnswer(
        vectors=found,
        model=model if type(model) is str else "",
        usage=_usage(answer.get("usage")),
        told=told if _is_writable(told) else {},
    )


def _in_order(data: Any, items: int) -> list[dict[str, Any]]:
    """``data`` by its ``index``, never by position, unless there is no index at all."""
    if type(data) is not list or set(map(type, data)) - {dict}:
        raise InvalidAnswer("no-data")
    if len(data) != items:
        raise InvalidAnswer("count")
    indices = [datum.get("index") for datum in data]
    absent = indices.count(None)
    if absent == items:
        return data
    if absent == 1:  # protocol buffers leave out what is zero (Gemini)
        indices[indices.index(None)] = 0
    if set(map(type, indices)) != {int} or sorted(indices) != list(range(items)):
        raise InvalidAnswer("indices")
    ordered = data.copy()
    for index, datum in zip(indices, data, strict=True):
        ordered[index] = datum
    return ordered


def _vectors(data: list[dict[str, Any]], provider: Provider, packed: DType | None) -> list[Vector]:
    encoded = packed or (DType.FLOAT32_SHORTEST if provider.writes_shortest else DType.FLOAT32)
    found = []
    for datum in data:
        embedding = datum.get("embedding")
        try:
            if type(embedding) is str:
                if packed is not None and not provider.packs_base64:
                    raise InvalidAnswer("encoding")
                found.append(vectors.from_base64(embedding, encoded))
            elif type(embedding) is list:
                found.append(vectors.from_numbers(embedding, packed, as_floats=not provider.packs_base64))
            else:
                raise InvalidAnswer("no-embedding")
        except InvalidVector:
            raise InvalidAnswer("vector") from None
    return found


def _usage(given: Any) -> dict[str, Any]:
    """Both integers, whichever of them the upstream sent (Voyage: total only; Together: neither)."""
    usage = dict(given) if type(given) is dict and _is_writable(given) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "total_tokens")]
    known = [count if type(count) is int and 0 <= count <= _LARGEST_EXACT_INTEGER else None for count in counts]
    fallback = next((count for count in known if count is not None), 0)
    for name, count in zip(("prompt_tokens", "total_tokens"), known, strict=True):
        usage[name] = fallback if count is None else count
    return usage


def _is_writable(value: Any) -> bool:
    """Whether what was read can be written again: orjson reads deeper than it writes."""
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return False
    return True


class _Openings:
    """The text before the i-th embedding of an answer, made once for each i."""

    def __init__(self) -> None:
        self._texts = [b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":']

    def first(self, count: int) -> list[bytes]:
        for index in range(len(self._texts), count):
            self._texts.append(b'},{"object":"embedding","index":%d,"embedding":' % index)
        return self._texts[:count]


_OPENINGS = _Openings()


def assemble(embeddings: Sequence[bytes], model: str, usage: dict[str, Any], told: Mapping[str, Any]) -> bytes:
    """An answer's body from the embeddings' JSON texts in index order, at least one; ``told`` are further fields."""
    count = len(embeddings)
    parts: list[bytes] = [b""] * (2 * count + 1)
    parts[0:-1:2] = _OPENINGS.first(count)
    parts[1::2] = embeddings
    parts[-1] = b'}],"model":%b,"usage":%b' % (orjson.dumps(model), orjson.dumps(usage))
    parts[-1] += b",%b}" % orjson.dumps(told)[1:-1] if told else b"}"
    return b"".join(parts)
