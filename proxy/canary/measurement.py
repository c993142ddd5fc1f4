"""The vectors of one check, and how far two vectors are from each other (pure)."""

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from proxy.canary.check_bodies import TEXTS
from proxy.protocol.vectors import DType, Vector, is_whole

# The largest cosine distance. Vectors of different lengths get it, too.
LARGEST_DISTANCE = 2.0
_Stored = tuple[str, list[tuple[DType, bytes]], list[tuple[DType, bytes]]]
_decode = msgspec.msgpack.Decoder(_Stored).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """``alone[i]`` and ``again[i]`` are two responses for the i-th text: asked alone, and in a batch of all texts."""

    model: str  # as the responses named it
    alone: tuple[Vector, ...]
    again: tuple[Vector, ...]

    @property
    def noise(self) -> float:
        """The largest cosine distance of two responses for one text: how far the upstream differs from itself."""
        return max(map(cosine_distance, self.alone, self.again))

    @property
    def vectors(self) -> tuple[Vector, ...]:
        return self.alone + self.again

    @property
    def dimensions(self) -> frozenset[int]:
        return frozenset(vector.dimensions for vector in self.vectors)


def encode(measured: Measurement) -> bytes:
    alone, again = ([(own.dtype, own.payload) for own in vectors] for vectors in (measured.alone, measured.again))
    stored: _Stored = measured.model, alone, again
    return msgspec.msgpack.encode(stored)


def decoded(stored: bytes | None) -> Measurement | None:
    """None for anything that `encode` did not write, such as a value of another version."""
    try:
        model, *both = _decode(stored or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    alone, again = (tuple(Vector(dtype, payload) for dtype, payload in own) for own in both)
    if len(alone) != len(TEXTS) or len(again) != len(TEXTS) or not all(map(is_whole, alone + again)):
        return None
    return Measurement(model=model, alone=alone, again=again)


def cosine_distance(one: Vector, other: Vector) -> float:
    """1 - cosine, from 0 to 2; the difference of the unit vectors is exact where 1 - cosine would be rounded to 0."""
    if one.dimensions != other.dimensions:
        return LARGEST_DISTANCE
    if one == other:
        return 0.0
    difference = _unit(one) - _unit(other)
    return min(LARGEST_DISTANCE, float(difference @ difference) / 2)


def changed_numbers(one: Vector, other: Vector) -> int:
    """How many numbers differ in any bit. If the lengths or types differ, all numbers count."""
    if one.dimensions != other.dimensions or one.dtype is not other.dtype:
        return max(one.dimensions, other.dimensions)
    size = one.array().itemsize
    ours, theirs = (np.frombuffer(vector.payload, f"u{size}") for vector in (one, other))
    return int(np.count_nonzero(ours != theirs))


def _unit(vector: Vector) -> NDArray[np.float64]:
    values = vector.array().astype(np.float64)
    unit: NDArray[np.float64] = values / np.linalg.norm(values)
    return unit
