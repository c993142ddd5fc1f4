"""Vectors that were paid for before, as files have them (pure)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from numpy.typing import NDArray

from proxy.filling.results import RefusedText


class PaidText(NamedTuple):
    """A text and its vector, from a ``line``, or a row, that counts from 1.

    ``embedding`` is the JSON of an array or of base64, or an array of float32, float64 or integers. ``tokens`` is None
    if the file does not say what was billed.
    """

    line: int
    text: str
    embedding: bytes | NDArray[Any]
    tokens: int | None = None


class PaidCall(NamedTuple):
    """A request that was sent to ``path``, and the body of the response to it, as the upstream wrote it."""

    line: int
    path: str
    body: bytes
    response: bytes


Paid = Iterator[PaidText | PaidCall | RefusedText]
