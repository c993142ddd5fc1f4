"""Upstream responses as validated vectors, and response bodies made from stored vectors (pure).

https://platform.openai.com/docs/api-reference/embeddings
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import orjson

from proxy.protocol import json_parts, json_structure, vector_batch, vectors
from proxy.protocol.json_numbers import MAX_EXACT_INTEGER
from proxy.protocol.json_parts import JSONParseError
from proxy.protocol.provider import Provider
from proxy.protocol.vector_batch import Batch, ExpectedResponse
from proxy.protocol.vectors import DType, InvalidVector, Vector
from proxy.steps import Steps, finish

_REBUILT = frozenset({"object", "data", "model", "usage", "error"})  # fields of a response that the proxy writes itself
# Fields of one item of a response. llama.cpp's `encoding_format` is about the notation and not about the item.
_ITEM_FIELDS = frozenset({"object", "index", "embedding", "encoding_format"})
_NO_EMBEDDING = object()
_PARSE_ERRORS = {"not-an-object": "error-in-200", "too-many-items": "count"}
# Arrays and objects that a large response may have, for each item and besides.
_MAX_CONTAINERS_OF_ITEM, _MAX_CONTAINERS, _MAX_BILLED_CONTAINERS = 16, 4096, 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingResponse:
    """A validated upstream response: ``vectors[i]`` belongs to the i-th item sent.

    A vector that can't be stored (null, all zero, not finite) is None, and ``unusable`` is the reason for the first of
    these. At least one vector is not None.
    """

    vectors: Sequence[Vector | None]
    model: str
    usage: dict[str, Any]  # as the upstream wrote it, with both token counts
    extra_fields: dict[str, Any]  # its other fields
    unusable: str | None
    texts: list[memoryview]  # each vector as the upstream wrote it, if it wrote all as numbers; or none


class InvalidEmbeddingResponse(ValueError):
    """An upstream response that must be neither stored nor split. ``reason`` is fit for a metric label.

    ``embedding`` is the value in place of the embedding, if one item was sent and nothing else is wrong.
    """

    def __init__(self, reason: str, embedding: Any = _NO_EMBEDDING) -> None:
        super().__init__(reason)
        self.reason = reason
        self.embedding = embedding

    @property
    def embedding_text(self) -> bytes | None:
        """The JSON of ``embedding``, if it is known and can be written."""
        if self.embedding is _NO_EMBEDDING or not _is_writable(self.embedding):
            return None
        return orjson.dumps(self.embedding)


def parse_response(
    body: bytes, provider: Provider, *, items: int, packed: DType | None = None, reads_base64: bool = True
) -> EmbeddingResponse:
    """`parse` without an interruption."""
    expected = ExpectedResponse(provider, items, packed, reads_base64)
    return finish(parse(body, expected, finish(vector_batch.parse(body, expected))))


def parse(body: bytes, expected: ExpectedResponse, batch: Batch | None) -> Steps[EmbeddingResponse]:
    """Parse and validate a 200 or 201. ``batch`` is its `vector_batch.parse`; without one, the first step takes as long
    as all of the parsing. Raises `InvalidEmbeddingResponse`.

    All vectors must have one length, but not necessarily the requested one: LM Studio and llama.cpp ignore
    ``dimensions``.
    """
    provider, items, packed, reads_base64 = expected
    response = _parse_json(body, provider, items, packed) if batch is None else batch.response
    if type(response) is not dict or response.get("error"):
        raise InvalidEmbeddingResponse("error-in-200")
    yield
    data = _sort_by_index(response.get("data"), items)
    yield
    _forbid_further_fields(data)
    yield
    texts: list[memoryview] = []
    found: Sequence[Vector | None]
    if batch is not None:
        (found, texts), unusable = batch.in_order(data), None
    else:
        found, unusable = _parse_singly(data, provider, packed, expected.base64_dtype, reads_base64=reads_base64)
    model = response.get("model")
    extra_fields = {name: value for name, value in response.items() if name not in _REBUILT}
    return EmbeddingResponse(
        vectors=found,
        model=model if type(model) is str else "",
        usage=_parse_usage(response.get("usage")),
        extra_fields=extra_fields if _is_writable(extra_fields) else {},
        unusable=unusable,
        texts=texts,
    )


def _parse_json(body: bytes, provider: Provider, items: int, packed: DType | None) -> Any:
    """A response as JSON.

    In a large one, embeddings are parsed one by one, and a `Vector` or an `InvalidVector` replaces each list: as Python
    objects, the numbers would take eight times the memory.
    """
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
        response = {name: json_parts.value(part) for name, part in members.items()}
        found = None if data is None else json_parts.elements(data, max_elements=max(items, _MAX_CONTAINERS))
        if found is not None and items > 1:
            response["data"] = [_with_vector(datum, provider, packed) for datum in found]
        elif data is not None:
            response["data"] = json_parts.value(data) if found is None else list(found)
    except JSONParseError as error:
        raise InvalidEmbeddingResponse(_PARSE_ERRORS.get(error.reason, error.reason)) from None
    return response


def _with_vector(datum: Any, provider: Provider, packed: DType | None) -> Any:
    if type(datum) is dict and type(numbers := datum.get("embedding")) is list:
        try:
            datum["embedding"] = _from_numbers(numbers, provider, packed)
        except InvalidVector as invalid:
            datum["embedding"] = invalid
    return datum


def _from_numbers(numbers: list[Any], provider: Provider, packed: DType | None) -> Vector:
    return vectors.from_numbers(numbers, packed, as_floats=not provider.packs_base64)


def billed_tokens(body: bytes) -> int:
    """The tokens that a 2xx says were billed; 0 if that can't be parsed."""
    if json_structure.has_more_containers(body, _MAX_BILLED_CONTAINERS):
        return 0
    try:
        usage = json_parts.value(json_parts.members(body)["usage"])
    except (JSONParseError, KeyError):
        return 0
    tokens: int = _parse_usage(usage)["prompt_tokens"]
    return tokens


def _sort_by_index(data: Any, items: int) -> list[dict[str, Any]]:
    """``data`` sorted by ``index``. The position counts only if no item has an index."""
    if type(data) is not list or set(map(type, data)) - {dict}:
        raise InvalidEmbeddingResponse("no-data")
    if len(data) != items:
        raise InvalidEmbeddingResponse("count")
    indices = [datum.get("index") for datum in data]
    absent = indices.count(None)
    if absent == items:
        return data
    if absent == 1:  # protocol buffers omit zeros (Gemini)
        indices[indices.index(None)] = 0
    positions = list(range(items))
    if set(map(type, indices)) != {int} or sorted(indices) != positions:
        raise InvalidEmbeddingResponse("indices")
    if indices == positions:  # the usual case
        return data
    ordered = data.copy()
    for index, datum in zip(indices, data, strict=True):
        ordered[index] = datum
    return ordered


def _forbid_further_fields(data: list[dict[str, Any]]) -> None:
    """Raises `InvalidEmbeddingResponse` for data that a hit would lose, such as sparse weights or an item's tokens."""
    if set[str]().union(*data) <= _ITEM_FIELDS:  # the usual case
        return
    values = ((name, value) for datum in data for name, value in datum.items())
    if any(value is not None and name not in _ITEM_FIELDS for name, value in values):
        raise InvalidEmbeddingResponse("further-fields")


def _parse_singly(
    data: list[dict[str, Any]], provider: Provider, packed: DType | None, encoded: DType, *, reads_base64: bool
) -> tuple[list[Vector | None], str | None]:
    """As `_parse_vectors`. Raises `InvalidEmbeddingResponse` also for what is wrong with all of them together."""
    if not reads_base64 and any(type(datum.get("embedding")) is str for datum in data):
        raise InvalidEmbeddingResponse("encoding")
    found, unusable = _parse_vectors(data, provider, packed, encoded)
    if len({vector.dimensions for vector in found if vector is not None}) > 1:
        raise InvalidEmbeddingResponse("mixed-dimensions")
    return found, unusable


def _parse_vectors(
    data: list[dict[str, Any]], provider: Provider, packed: DType | None, encoded: DType
) -> tuple[list[Vector | None], str | None]:
    """The vectors in order, None for one that can't be stored, and the reason for the first of these. Base64 contains
    ``encoded``."""
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
                raise embedding
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


def _parse_usage(given: Any) -> dict[str, Any]:
    """Usage with both token counts, whichever of them the upstream sent (Voyage: total only; Together: neither)."""
    usage = dict(given) if type(given) is dict and _is_writable(given) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "total_tokens")]
    known = [count if type(count) is int and 0 <= count <= MAX_EXACT_INTEGER else None for count in counts]
    fallback = next((count for count in known if count is not None), 0)
    for name, count in zip(("prompt_tokens", "total_tokens"), known, strict=True):
        usage[name] = fallback if count is None else count
    return usage


def _is_writable(value: Any) -> bool:
    """Whether a parsed value can be written: orjson parses deeper nesting than it writes."""
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return False
    return True


class _Openings:
    """The JSON before the i-th embedding of a response, built once for each i. ``quote`` is around each embedding."""

    def __init__(self, quote: bytes) -> None:
        self.quote = quote
        self._texts = [b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":' + quote]

    def first(self, count: int) -> list[bytes]:
        for index in range(len(self._texts), count):
            opening = b'},{"object":"embedding","index":%d,"embedding":' % index
            self._texts.append(self.quote + opening + self.quote)
        return self._texts[:count]


_OF_JSON, _OF_BASE64 = _Openings(b""), _Openings(b'"')


def ending(model: str, usage: dict[str, Any], extra_fields: Mapping[str, Any]) -> bytes:
    """The JSON after the last embedding of a response; ``extra_fields`` are fields that OpenAI does not document."""
    text = b'}],"model":%b,"usage":%b' % (orjson.dumps(model), orjson.dumps(usage))
    return text + (b",%b}" % orjson.dumps(extra_fields)[1:-1] if extra_fields else b"}")


def parts(embeddings: Sequence[bytes], end: bytes, *, are_base64: bool = False) -> list[bytes]:
    """The parts of a response's body: at least one embedding, in index order, and the `ending`.

    The embeddings are JSON, or all of them base64 without quotes.
    """
    openings = _OF_BASE64 if are_base64 else _OF_JSON
    count = len(embeddings)
    texts: list[bytes] = [openings.quote + end] * (2 * count + 1)
    texts[0:-1:2] = openings.first(count)
    texts[1::2] = embeddings
    return texts


def stream_parts(embeddings: Iterable[bytes], count: int, end: bytes, *, are_base64: bool = False) -> Iterator[bytes]:
    """The same for ``count`` embeddings that are generated during the iteration."""
    openings = _OF_BASE64 if are_base64 else _OF_JSON
    return chain(chain.from_iterable(zip(openings.first(count), embeddings, strict=True)), (openings.quote + end,))


def base64_length(embeddings: Sequence[int], end: bytes) -> int:
    """The length of the same with base64, from the lengths of the ``embeddings``."""
    openings = _OF_BASE64.first(len(embeddings))
    return sum(map(len, openings)) + sum(embeddings) + len(_OF_BASE64.quote) + len(end)
