"""Lossless vectors: the fewest bytes from which every client gets the numbers that the upstream wrote (pure).

Upstreams write a float32 either as the shortest text that parses to the float32 (TEI, Ollama, OpenRouter) or as the
shortest text of the same number widened to float64 (vLLM, Infinity, AIGNE). A client parses both as float64 and gets
different doubles, so each vector records which of the two it was.
"""

from enum import Enum, IntEnum
from typing import Any

import numpy as np
import orjson
import pybase64
from msgspec import Struct
from numpy.typing import NDArray

from proxy.protocol.number_text import number_text

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class Encoding(Enum):
    """How a response writes its vectors: the values of OpenAI's ``encoding_format``."""

    FLOAT = "float"
    BASE64 = "base64"


class DType(IntEnum):
    """The type of a payload's elements (little-endian). The enum values are stored, so they never change."""

    FLOAT32 = 0  # as text: float64 repr of the float32
    FLOAT32_SHORTEST = 1  # as text: shortest text that reads back as the float32
    FLOAT64 = 2
    INT8 = 3
    UINT8 = 4
    INT32 = 5
    INT64 = 6
    # Requested by name (Voyage's `output_dtype`), so base64 contains these bytes and not float32.
    INT8_PACKED = 7
    UINT8_PACKED = 8

    __hash__ = int.__hash__  # an Enum's own is a function in Python, and every record that is read needs one


_NUMPY_TYPES: dict[DType, np.dtype[Any]] = {
    DType.FLOAT32: np.dtype("<f4"),
    DType.FLOAT32_SHORTEST: np.dtype("<f4"),
    DType.FLOAT64: np.dtype("<f8"),
    DType.INT8: np.dtype("i1"),
    DType.UINT8: np.dtype("u1"),
    DType.INT32: np.dtype("<i4"),
    DType.INT64: np.dtype("<i8"),
    DType.INT8_PACKED: np.dtype("i1"),
    DType.UINT8_PACKED: np.dtype("u1"),
}
# Of one number.
ITEM_BYTES = {dtype: numpy_type.itemsize for dtype, numpy_type in _NUMPY_TYPES.items()}
_PACKED = (DType.INT8_PACKED, DType.UINT8_PACKED)
_IN_BASE64_AS_STORED = (DType.FLOAT32, DType.FLOAT32_SHORTEST, *_PACKED)
_INTEGERS = (DType.INT8, DType.UINT8, DType.INT32, DType.INT64)
# A base64 response is always float32, so only integers that float32 represents exactly can be stored.
_LARGEST_EXACT_IN_FLOAT32 = 2**24


class InvalidVector(ValueError):
    """Not a vector that can be stored. The message is a fixed phrase, fit for a log and a metric."""


class Vector(Struct, frozen=True, gc=False):
    """``dimensions`` numbers of ``dtype``, packed little-endian in ``payload``."""

    dtype: DType
    payload: bytes

    @property
    def dimensions(self) -> int:
        return len(self.payload) // ITEM_BYTES[self.dtype]

    def array(self) -> NDArray[Any]:
        return np.frombuffer(self.payload, _NUMPY_TYPES[self.dtype])


def is_whole(vector: Vector) -> bool:
    """Whether the payload is a whole, positive number of elements."""
    return len(vector.payload) > 0 and len(vector.payload) % ITEM_BYTES[vector.dtype] == 0


def from_base64(text: str, dtype: DType = DType.FLOAT32) -> Vector:
    """A vector from base64 of little-endian float32 (OpenAI) or of a packed ``dtype``. Raises `InvalidVector`."""
    try:
        payload = pybase64.b64decode(text, validate=True)
    except ValueError:
        raise InvalidVector("base64 that doesn't decode") from None
    vector = Vector(dtype, payload)
    if not is_whole(vector):
        raise InvalidVector("base64 that is not a whole number of elements")
    values = vector.array()
    if not np.isfinite(values).all():
        raise InvalidVector("a value that is not finite")
    if not values.any():
        raise InvalidVector("all zero")
    return vector


def from_numbers(numbers: list[Any], packed: DType | None = None, *, as_floats: bool = False) -> Vector:
    """A vector from a parsed JSON array. Every number keeps its exact value. Raises `InvalidVector`.

    Numbers of a ``packed`` type may be written ``as_floats`` (Jina: -78.0), and then they stay floats.
    """
    types = set(map(type, numbers))
    if not types or not types <= {int, float}:
        raise InvalidVector("not an array of numbers")
    if not any(numbers):
        raise InvalidVector("all zero")
    if packed is not None:
        return _from_packed(numbers, types, packed, as_floats=as_floats)
    return _from_integers(numbers) if types == {int} else from_floats(numbers)


def _from_packed(numbers: list[Any], types: set[type], dtype: DType, *, as_floats: bool) -> Vector:
    limits = np.iinfo(_NUMPY_TYPES[dtype])
    is_written_as_floats = as_floats and types == {float} and all(map(float.is_integer, numbers))
    if not (types == {int} or is_written_as_floats) or min(numbers) < limits.min or max(numbers) > limits.max:
        raise InvalidVector("a number outside the integer type that was asked for")
    if is_written_as_floats:
        return from_floats(numbers)
    return Vector(dtype, np.array(numbers, _NUMPY_TYPES[dtype]).tobytes())


def _from_integers(numbers: list[int]) -> Vector:
    low, high = min(numbers), max(numbers)
    if max(-low, high) > _LARGEST_EXACT_IN_FLOAT32:
        raise InvalidVector("an integer that float32 can't hold")
    dtype = next(t for t in _INTEGERS if np.iinfo(_NUMPY_TYPES[t]).min <= low and high <= np.iinfo(_NUMPY_TYPES[t]).max)
    return Vector(dtype, np.array(numbers, _NUMPY_TYPES[dtype]).tobytes())


def from_floats(numbers: list[float] | NDArray[np.float64]) -> Vector:
    """A vector from floats. Raises `InvalidVector`."""
    wide = np.array(numbers, np.float64)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise InvalidVector("a value that is not finite as float32")
    if not narrow.any():
        raise InvalidVector("all zero as float32")
    if (narrow == wide).all():
        return Vector(DType.FLOAT32, narrow.astype("<f4").tobytes())
    if (exact := _as_shortest_float32(wide, narrow)) is not None:
        return Vector(DType.FLOAT32_SHORTEST, exact.astype("<f4").tobytes())
    return Vector(DType.FLOAT64, wide.astype("<f8").tobytes())


def _as_shortest_float32(wide: NDArray[Any], narrow: NDArray[Any]) -> NDArray[Any] | None:
    """The float32 values whose shortest texts parse to ``wide``, or None; ``narrow`` is ``wide`` rounded to float32.

    In one of many millions of numbers, ``narrow`` is wrong by one step: the text, parsed as float64, is exactly halfway
    between two float32 values, while the text itself is closer to one of them.
    """
    wrong = _shortest(narrow) != wide
    if not wrong.any():
        return narrow
    for towards in (np.float32(np.inf), np.float32(-np.inf)):
        with np.errstate(over="ignore"):
            other = np.where(wrong, np.nextafter(narrow, towards), narrow)
        narrow = np.where(_shortest(other) == wide, other, narrow)
    return narrow if (_shortest(narrow) == wide).all() else None


def _shortest(values: NDArray[Any]) -> NDArray[Any]:
    """The float64 values that a client parses from the shortest texts of float32 values."""
    return np.array(orjson.loads(orjson.dumps(values, option=_NUMPY)), np.float64)


def is_base64_as_stored(dtype: DType) -> bool:
    """Whether `base64_text` is the base64 of the payload as it is stored."""
    return dtype in _IN_BASE64_AS_STORED


def base64_text(dtype: DType, payload: bytes) -> bytes:
    """A vector as base64 of little-endian float32, or of the bytes of a packed type."""
    if dtype not in _IN_BASE64_AS_STORED:
        payload = Vector(dtype, payload).array().astype("<f4").tobytes()
    return pybase64.b64encode(payload)


def base64_length(dtype: DType, dimensions: int) -> int:
    """The length of the `base64_text` of so many numbers."""
    item_bytes = ITEM_BYTES[dtype] if dtype in _IN_BASE64_AS_STORED else ITEM_BYTES[DType.FLOAT32]
    return 4 * -(-dimensions * item_bytes // 3)


def numbers_json(vector: Vector) -> bytes:
    """The vector as a JSON array that parses to the numbers the upstream wrote."""
    values = vector.array()
    if vector.dtype is DType.FLOAT32:
        values = values.astype(np.float64)
    return number_text(values)
