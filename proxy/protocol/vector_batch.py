"""Cuts the vectors out of a response of the usual form, and parses and checks them together (pure).

A response is nearly all embeddings. The rest of it is small, and shows its structure. If anything is unusual, valid or
not, the result is None, and the caller parses each vector alone.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
import pybase64
import simdjson
from numpy.typing import NDArray

from proxy.protocol import json_parts, shortest_floats, vectors
from proxy.protocol.provider import Provider
from proxy.protocol.vectors import ITEM_BYTES, DType, InvalidVector, Vector
from proxy.steps import Steps

_NAME = b'"embedding":'
_ENDS = {ord("["): b"]", ord('"'): b'"'}
_MEMBER = re.compile(rb'"embedding"[ \t\r\n]*:')
_QUOTE, _POINT, _OPENING = ord('"'), ord("."), ord("[")
_MAX_NUMBER_BYTES = 32  # with what separates it from the next
_CHUNK_BASE64_BYTES = 128 * 1024
_CHUNK_NUMBERS = 8 * 1536  # the intermediate results stay in a core's own cache; checked in a quarter of a millisecond


class ExpectedResponse(NamedTuple):
    """What the response to an embeddings call is expected to have.

    ``packed`` is the integer type that the request named; ``reads_base64``: base64 contains float32 or that type.
    """

    provider: Provider
    items: int
    packed: DType | None = None
    reads_base64: bool = True

    @property
    def base64_dtype(self) -> DType:
        if self.packed is not None:
            return self.packed
        return DType.FLOAT32_SHORTEST if self.provider.uses_shortest_floats else DType.FLOAT32


class Batch(NamedTuple):
    """A response in which a number is in place of each embedding: the index of its vector and text."""

    response: dict[str, Any]
    vectors: list[Vector]
    texts: list[memoryview]

    def in_order(self, data: list[dict[str, Any]]) -> tuple[list[Vector], list[memoryview]]:
        """The vectors of ``data``, which is the response's list in any order; and their texts, if all are arrays of at
        most `_MAX_NUMBER_BYTES` a number."""
        indices = [datum["embedding"] for datum in data]
        most = _MAX_NUMBER_BYTES * self.vectors[0].dimensions
        texts = self.texts if self.texts[0][0] == _OPENING and max(map(len, self.texts)) <= most else []
        return [self.vectors[i] for i in indices], [texts[i] for i in indices if texts]


def parse(body: bytes, expected: ExpectedResponse) -> Steps[Batch | None]:
    """The usual response. Responses of integers, or of base64 that may contain anything, are not parsed here."""
    if expected.packed is not None or not expected.reads_base64:
        return None
    items = expected.items
    cut = yield from cut_texts(body, items)
    if cut is None or len(cut.outline) > json_parts.LARGE_BYTES:
        return None
    try:
        response = orjson.loads(cut.outline)
    except orjson.JSONDecodeError:
        return None
    yield
    data = response.get("data") if type(response) is dict else None
    if type(data) is not list or {datum.get("embedding") for datum in data if type(datum) is dict} != set(range(items)):
        return None
    yield
    found = yield from _vectors(cut.texts, expected.base64_dtype)
    return None if found is None else Batch(response, found, cut.texts)


class Cut(NamedTuple):
    """A response in two parts. ``texts`` are its embeddings, arrays or strings. ``outline`` is the response with the
    number i in place of the i-th embedding. All members named ``embedding`` have such a value.

    The response is valid JSON if and only if the outline and all texts are. An array may still have other arrays in it.
    """

    outline: bytes
    texts: list[memoryview]  # views of the response


def cut_texts(body: bytes, items: int) -> Steps[Cut | None]:
    """Cut ``items`` embeddings out of a response. None if it is written in an unusual way, or has more or fewer.

    A text begins after the unescaped quote and the colon of a member's name, so it does not begin inside a string. An
    array is cut at its first closing bracket, which is its end unless it has an array or a string in it. A string is
    cut at its next quote, which is its end unless it has escaped characters; base64 needs none.
    """
    outline: list[bytes] = []
    texts: list[memoryview] = []
    view, end = memoryview(body), 0
    while (name := body.find(_NAME, end)) >= 0:
        start = name + len(_NAME)
        start += body[start : start + 1] == b" "
        closing = _ENDS.get(body[start]) if start < len(body) else None
        if closing is None or len(texts) == items:
            return None
        outline += (body[end:start], b"%d" % len(texts))
        end = body.find(closing, start + 1) + 1
        if not end:
            return None
        texts.append(view[start:end])
        yield
    outline.append(body[end:])
    rest = b"".join(outline)
    yield
    # An escape might hide a member of the same name, whose value would count in place of the one that was cut out.
    if len(texts) != items or b"\\" in rest or len(_MEMBER.findall(rest)) != items:
        return None
    return Cut(rest, texts)


def _vectors(texts: Sequence[memoryview], base64_dtype: DType) -> Steps[list[Vector] | None]:
    """The vectors of ``texts``, at least one, which are all strings or all arrays."""
    first = texts[0][0]
    if any(text[0] != first for text in texts):
        return None
    return (yield from _from_base64(texts, base64_dtype) if first == _QUOTE else _from_arrays(texts))


def _from_base64(texts: Sequence[memoryview], dtype: DType) -> Steps[list[Vector] | None]:
    length = len(texts[0])
    if any(len(text) != length for text in texts):
        return None
    chunk = max(1, _CHUNK_BASE64_BYTES // length)
    found: list[Vector] = []
    try:
        for start in range(0, len(texts), chunk):
            payloads = [pybase64.b64decode(text[1:-1], validate=True) for text in texts[start : start + chunk]]
            found += [Vector(dtype, payload) for payload in payloads]
            values = np.frombuffer(b"".join(payloads), "<f4")
            size = len(found[0].payload)
            if set(map(len, payloads)) != {size} or not vectors.is_whole(found[0]):
                return None
            if not _are_usable(values.reshape(-1, size // ITEM_BYTES[dtype])):
                return None
            yield
    except ValueError:  # of pybase64, or numpy
        return None
    return found


def _from_arrays(texts: Sequence[memoryview]) -> Steps[list[Vector] | None]:
    parser = simdjson.Parser()
    found: list[Vector] = []
    try:
        dimensions = len(_floats(parser, texts[0]))
        chunk = max(1, _CHUNK_NUMBERS // dimensions) if dimensions else 0
        for start in range(0, len(texts), chunk):  # also raises `ValueError` for an empty array
            some = texts[start : start + chunk]
            rows = []
            for text in some:
                rows.append(_floats(parser, text))
                if len(rows[-1]) != dimensions:
                    return None
                yield
            wide = np.concatenate(rows).reshape(-1, dimensions)
            with np.errstate(over="ignore"):
                narrow = wide.astype(np.float32)
            if not (_are_usable(narrow) and _are_floats(wide, some)):
                return None
            yield
            if (dtypes := _dtypes(wide, narrow)) is not None:
                rows_f4 = narrow.astype("<f4", copy=False)
                found += [Vector(dtype, row.tobytes()) for dtype, row in zip(dtypes, rows_f4, strict=True)]
                yield
                continue
            for row in wide:
                found.append(vectors.from_floats(row))
                yield
    except (ValueError, TypeError, RuntimeError):  # of simdjson, too, and InvalidVector
        return None
    return found


def _dtypes(wide: NDArray[np.float64], narrow: NDArray[np.float32]) -> list[DType] | None:
    """The type of each of these rows, if all are known at once."""
    is_exact = narrow[:, 0] == wide[:, 0]
    if is_exact.any():
        is_exact = (narrow == wide).all(axis=1)
    if not is_exact.all() and not shortest_floats.are_shortest(wide, narrow):
        return None
    return [DType.FLOAT32 if exact else DType.FLOAT32_SHORTEST for exact in is_exact.tolist()]


def _floats(parser: simdjson.Parser, text: memoryview) -> NDArray[np.float64]:
    """The numbers of an array that has nothing else in it. Raises `ValueError`, `TypeError`, `RuntimeError`.

    An array inside it would be flattened, but there can't be one: `cut_texts` cuts at the first closing bracket, so the
    text would not be valid.
    """
    array = parser.parse(text)
    if not isinstance(array, simdjson.Array):
        raise InvalidVector("not an array")
    return np.frombuffer(array.as_buffer(of_type="d"), np.float64)


def _are_floats(wide: NDArray[np.float64], texts: Sequence[memoryview]) -> bool:
    """Whether no number is written as an integer. simdjson rounds integers to floats; they are stored as integers."""
    if not (np.rint(wide) == wide).any():
        return True
    points = [np.count_nonzero(np.frombuffer(text, np.uint8) == _POINT) for text in texts]
    return set(points) == {wide.shape[1]}


def _are_usable(values: NDArray[np.float32]) -> bool:
    """Whether all of the numbers are finite, and no row is all zero."""
    return bool(np.isfinite(values).all()) and bool(values[:, 0].all() or values.any(axis=1).all())
