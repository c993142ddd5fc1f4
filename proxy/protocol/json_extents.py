"""Where the values inside a JSON array or object begin and end, found without parsing them (pure).

The bytes are scanned in windows, with numpy, which releases the interpreter lock. The cost is almost independent of the
content.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxy.steps import Steps, finish

_WINDOW = 32 * 1024
_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_OPENING, _CLOSING = ord("{"), ord("}")  # and, where bit 5 is set, `[` and `]`
_BIT_5 = 0x20
_DIRECT, _INNER = 1, 2  # depths: inside the array or object, and inside one of its values

_Offsets = NDArray[np.intp]
_NONE: _Offsets = np.zeros(0, np.intp)


class Extents(NamedTuple):
    """The i-th value is ``text[starts[i]:ends[i]]``. Exact for valid JSON. If the text is invalid, one of the values or
    the text between them is invalid too."""

    starts: _Offsets
    ends: _Offsets


class TooMany(ValueError):
    """There are more values than the caller accepts."""


def inside(text: bytes | memoryview, *, limit: int) -> Extents:
    """The extents of the strings (names of members included), arrays and objects directly inside an array or object.

    Raises `TooMany` as soon as there are more than ``limit``.
    """
    return finish(inside_in_steps(text, limit=limit))


def inside_in_steps(text: bytes | memoryview, *, limit: int) -> Steps[Extents]:
    """`inside`, window by window."""
    scan = _Scan()
    starts, ends, found = [_NONE], [_NONE], 0
    for offset in range(0, len(text), _WINDOW):
        opened, closed = scan.feed(np.frombuffer(text[offset : offset + _WINDOW], np.uint8))
        starts.append(opened + offset)
        ends.append(closed + offset)
        found += len(opened)
        if found > limit:
            raise TooMany
        yield
    count = min(found, sum(map(len, ends)))  # a value without an end does not count
    return Extents(np.concatenate(starts)[:count], np.concatenate(ends)[:count])


class _Scan:
    """The state between two windows."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False  # the first byte of the next window

    def feed(self, codes: NDArray[np.uint8]) -> tuple[_Offsets, _Offsets]:
        """The offsets at which values begin, and those after which they end."""
        quotes = self._quotes(codes)
        brackets, steps = self._brackets(codes, quotes)
        depths = np.concatenate(([self._depth], self._depth + np.cumsum(steps)))
        # Brackets inside a string do not count, so both of its quotes are at the same depth.
        is_direct = depths[np.searchsorted(brackets, quotes)] == _DIRECT
        is_first = (np.arange(len(quotes)) + self._is_in_string) % 2 == 0
        opened = quotes[is_direct & is_first], brackets[(steps == 1) & (depths[1:] == _INNER)]
        closed = quotes[is_direct & ~is_first], brackets[(steps == -1) & (depths[1:] == _DIRECT)]
        self._depth = int(depths[-1])
        self._is_in_string ^= len(quotes) % 2 == 1
        return np.sort(np.concatenate(opened)), np.sort(np.concatenate(closed)) + 1

    def _quotes(self, codes: NDArray[np.uint8]) -> _Offsets:
        """The offsets of quotes that begin or end a string."""
        is_quote = codes == _QUOTE
        backslashes = np.flatnonzero(codes == _BACKSLASH)
        if self._is_escaped or len(backslashes):
            escaped = _escaped(backslashes, is_first_escaped=self._is_escaped)
            self._is_escaped = bool(len(escaped)) and int(escaped[-1]) == len(codes)
            is_quote[escaped[: len(escaped) - self._is_escaped]] = False
        return np.flatnonzero(is_quote)

    def _brackets(self, codes: NDArray[np.uint8], quotes: _Offsets) -> tuple[_Offsets, NDArray[Any]]:
        """The offsets of brackets outside strings, and the change of depth at each."""
        folded = codes | _BIT_5
        is_opening = folded == _OPENING
        brackets = np.flatnonzero(is_opening | (folded == _CLOSING))
        is_outside = (np.searchsorted(quotes, brackets) + self._is_in_string) % 2 == 0
        brackets = brackets[is_outside]
        return brackets, np.where(is_opening[brackets], 1, -1)


def _escaped(backslashes: _Offsets, *, is_first_escaped: bool) -> _Offsets:
    """The offsets of escaped characters. In a run of backslashes, every second one is escaped."""
    if not len(backslashes):
        return np.zeros(1, np.intp)
    begins = np.diff(backslashes, prepend=-2) != 1
    starts = np.maximum.accumulate(np.where(begins, backslashes, 0))
    if is_first_escaped:
        starts[starts == 0] += backslashes[0] == 0
    escaped: _Offsets = backslashes[(backslashes - starts) % 2 == 0] + 1
    return np.concatenate(([0], escaped)) if is_first_escaped else escaped
