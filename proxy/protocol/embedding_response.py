"""What an upstream replied ↔ validated vectors, and the body of an answer made from stored ones (pure).

https://platform.openai.com/docs/api-reference/embeddings
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.protocol import json_parts, json_structure, vectors
from proxy.protocol.json_numbers import MAX_EXACT_INTEGER
from proxy.protocol.json_parts import JSONParseError
from proxy.protocol.provider import Provider
from proxy.protocol.vectors import DType, InvalidVector, Vector

_REBUILT = frozenset({"object", "data", "model", "usage", "error"})  # fields of an answer
# Fields of one item of an answer. llama.cpp's `encoding_format` says how that is written, and nothing of the item.
_ITEM_FIELDS = frozenset({"object", "index", "embedding", "encoding_format"})
_OK, _UNKNOWN_ERROR, _LOWEST_ERROR = 200, 400, 300
_NO_EMBEDDING = object()
MAX_ERROR_BYTES = 64 * 1024  # a longer body is no error
_UNPARSED = {"not-an-object": "error-in-200", "too-many-items": "count"}
# Arrays and objects that a large response may have, for each item and besides.
_MAX_CONTAINERS_OF_ITEM, _MAX_CONTAINERS, _MAX_BILLED_CONTAINERS = 16, 4096, 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingResponse:
    """A validated upstream answer: ``vectors[i]`` belongs to the i-th item sent.

    A vector that can't be stored (null, all zero, not finite) is None, and then ``unusable`` says what the first of
    these was; at least one is there.
    """

    vectors: list[Vector | None]
    model: str
    usage: dict[str, Any]  # as the upstream wrote it, both integers present
    extra_fields: dict[str, Any]  # its other fields
    unusable: str | None


class InvalidEmbeddingResponse(ValueError):
    """An upstream answer that must be neither stored nor taken apart. ``reason`` is fit for a metric label;
    ``embedding`` is what stands for the embedding, where one item was sent and that alone is wrong."""

    def __init__(self, reason: str, embedding: Any = _NO_EMBEDDING) -> None:
        super().__init__(reason)
        self.reason = reason
        self.embedding = embedding

    @property
    def embedding_text(self) -> bytes | None:
        """The embedding's JSON, if it is known and can be written again."""
        if self.embedding is _NO_EMBEDDING or not _is_writable(self.embedding):
            return None
        return orjson.dumps(self.embedding)


def error_status(body: bytes, status: int = _OK) -> int:
    """The status of the error inside a 2xx, as OpenRouter sends; ``status`` where there is none."""
    if len(body) > MAX_ERROR_BYTES or b'"error"' not in body:
        return status
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return status
    error = answer.get("error") if type(answer) is dict else None
    if not error:
        return status
    code = error.get("code") if type(error) is dict else None
    return code if type(code) is int and code >= _LOWEST_ERROR else _UNKNOWN_ERROR


def is_error(body: bytes) -> bool:
    """Whether a 200 is an error."""
    return error_status(body) != _OK


def parse_response(
    body: bytes,
    provider: Provider,
    *,
    items: int,
    packed: DType | None = None,
    reads_base64: bool = True,
) -> EmbeddingResponse:
    """Read a 200 or 201 of ``provider``, which was sent ``items`` items; vectors are of a ``packed`` type, if that was
    asked for. ``reads_base64``: base64, where there is some, is of float32 or of that type.
    Raises `InvalidEmbeddingResponse`.

    One length for all vectors, whether or not it is the one that was asked for: LM Studio and llama.cpp ignore
    ``dimensions``.
    """
    answer = _parsed(body, provider, items, packed)
    if type(answer) is not dict or answer.get("error"):
        raise InvalidEmbeddingResponse("error-in-200")
    data = _in_order(answer.get("data"), items)
    _forbid_further_fields(data)
    if not reads_base64 and any(type(datum.get("embedding")) is str for datum in data):
        raise InvalidEmbeddingResponse("encoding")
    found, unusable = _vectors(data, provider, packed)
    if len({vector.dimensions for vector in found if vector is not None}) > 1:
        raise InvalidEmbeddingResponse("mixed-dimensions")
    model = answer.get("model")
    extra_fields = {name: value for name, value in answer.items() if name not in _REBUILT}
    return EmbeddingResponse(
        vectors=found,
        model=model if type(model) is str else "",
        usage=_usage(answer.get("usage")),
        extra_fields=extra_fields if _is_writable(extra_fields) else {},
        unusable=unusable,
    )


def _parsed(body: bytes, provider: Provider, items: int, packed: DType | None) -> Any:
    """A response as JSON. Of a large one each embedding is parsed by itself, and is a `Vector` or an `InvalidVector` in
    place of an array: as objects of Python, its numbers would take eight times their memory."""
    if len(body) <= json_parts.LARGE_BYTES:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            raise InvalidEmbeddingResponse("not-json") from None
    if json_structure.has_more_containers(body, _MAX_CONTAINERS_OF_ITEM * items + _MAX_CONTAINERS):
        raise InvalidEmbeddingResponse("too-complex")
    try:
        members = json_parts.members(body)
        data = members.pop("data", None)
        answer = {name: json_parts.value(part) for name, part in members.items()}
        found = None if data is None else json_parts.elements(data, max_elements=max(items, _MAX_CONTAINERS))
        if found is not None and items > 1:
            answer["data"] = [_packed_datum(datum, provider, packed) for datum in found]
        elif data is not None:
            answer["data"] = json_parts.value(data) if found is None else list(found)
    except JSONParseError as unparsed:
        raise InvalidEmbeddingResponse(_UNPARSED.get(unparsed.reason, unparsed.reason)) from None
    return answer


def _packed_datum(datum: Any, provider: Provider, packed: DType | None) -> Any:
    if type(datum) is dict and type(numbers := datum.get("embedding")) is list:
        try:
            datum["embedding"] = _from_numbers(numbers, provider, packed)
        except InvalidVector as invalid:
            datum["embedding"] = invalid
    return datum


def _from_numbers(numbers: list[Any], provider: Provider, packed: DType | None) -> Vector:
    return vectors.from_numbers(numbers, packed, as_floats=not provider.packs_base64)


def _form(embedding: Any) -> type:
    """What stood in the JSON."""
    return list if isinstance(embedding, Vector | InvalidVector) else type(embedding)


def billed_tokens(body: bytes) -> int:
    """What a 2xx says was billed, as far as it can be read."""
    if json_structure.has_more_containers(body, _MAX_BILLED_CONTAINERS):
        return 0
    try:
        usage = json_parts.value(json_parts.members(body)["usage"])
    except (JSONParseError, KeyError):
        return 0
    tokens: int = _usage(usage)["prompt_tokens"]
    return tokens


def _in_order(data: Any, items: int) -> list[dict[str, Any]]:
    """``data`` by its ``index``, never by position, unless there is no index at all."""
    if type(data) is not list or set(map(type, data)) - {dict}:
        raise InvalidEmbeddingResponse("no-data")
    if len(data) != items:
        raise InvalidEmbeddingResponse("count")
    indices = [datum.get("index") for datum in data]
    absent = indices.count(None)
    if absent == items:
        return data
    if absent == 1:  # protocol buffers leave out what is zero (Gemini)
        indices[indices.index(None)] = 0
    if set(map(type, indices)) != {int} or sorted(indices) != list(range(items)):
        raise InvalidEmbeddingResponse("indices")
    ordered = data.copy()
    for index, datum in zip(indices, data, strict=True):
        ordered[index] = datum
    return ordered


def _forbid_further_fields(data: list[dict[str, Any]]) -> None:
    """Sparse weights, tokens of the item and the like would be lost on a hit; null says nothing."""
    for datum in data:
        if not datum.keys() <= _ITEM_FIELDS and any(datum[name] is not None for name in datum.keys() - _ITEM_FIELDS):
            raise InvalidEmbeddingResponse("further-fields")


def _vectors(
    data: list[dict[str, Any]], provider: Provider, packed: DType | None
) -> tuple[list[Vector | None], str | None]:
    """The vectors in order, None for one that can't be stored, and why the first of these can't."""
    encoded = packed or (DType.FLOAT32_SHORTEST if provider.uses_shortest_floats else DType.FLOAT32)
    found: list[Vector | None] = []
    unusable = None
    for datum in data:
        embedding = datum.get("embedding")
        try:
            if type(embedding) is str:
                if packed is not None and not provider.packs_base64:
                    raise InvalidEmbeddingResponse("encoding")
                found.append(vectors.from_base64(embedding, encoded))
            elif type(embedding) is list:
                found.append(_from_numbers(embedding, provider, packed))
            elif type(embedding) is Vector:
                found.append(embedding)
            elif type(embedding) is InvalidVector:
                unusable = unusable or "vector"
                found.append(None)
            else:
                unusable = unusable or "no-embedding"
                found.append(None)
        except InvalidVector:
            unusable = unusable or "vector"
            found.append(None)
    if unusable is not None and not any(found):
        only = data[0].get("embedding", _NO_EMBEDDING) if len(data) == 1 else _NO_EMBEDDING
        raise InvalidEmbeddingResponse(unusable, only)
    return found, unusable


def _usage(given: Any) -> dict[str, Any]:
    """Both integers, whichever of them the upstream sent (Voyage: total only; Together: neither)."""
    usage = dict(given) if type(given) is dict and _is_writable(given) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "total_tokens")]
    known = [count if type(count) is int and 0 <= count <= MAX_EXACT_INTEGER else None for count in counts]
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


def ending(model: str, usage: dict[str, Any], extra_fields: Mapping[str, Any]) -> bytes:
    """What follows the last embedding of an answer's body; ``extra_fields`` are further fields."""
    text = b'}],"model":%b,"usage":%b' % (orjson.dumps(model), orjson.dumps(usage))
    return text + (b",%b}" % orjson.dumps(extra_fields)[1:-1] if extra_fields else b"}")


def parts(embeddings: Sequence[bytes], end: bytes) -> list[bytes]:
    """The parts of an answer's body, of the embeddings' JSON texts in index order, at least one, and its `ending`."""
    count = len(embeddings)
    texts: list[bytes] = [end] * (2 * count + 1)
    texts[0:-1:2] = _OPENINGS.first(count)
    texts[1::2] = embeddings
    return texts


def stream_parts(embeddings: Iterable[bytes], count: int, end: bytes) -> Iterator[bytes]:
    """The same, for ``count`` embeddings whose texts are made when their turn comes."""
    for opening, embedding in zip(_OPENINGS.first(count), embeddings, strict=True):
        yield opening
        yield embedding
    yield end
