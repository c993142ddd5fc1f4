"""Where the values inside a JSON array or object begin and end, found without parsing them (pure).

The bytes are looked at in windows, with numpy, which lets other threads run meanwhile; what it costs hardly depends on
what they are.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_WINDOW = 256 * 1024
_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_OPENING, _CLOSING = ord("{"), ord("}")  # and, where bit 5 is set, `[` and `]`
_BIT_5 = 0x20
_DIRECT, _INNER = 1, 2  # depths: inside the array or object, and inside a value of it

_Places = NDArray[np.intp]
_NONE: _Places = np.zeros(0, np.intp)


class Extents(NamedTuple):
    """The i-th value is ``text[starts[i]:ends[i]]``. Exact for valid JSON; for anything else one of the values, or what
    is between them, is no JSON."""

    starts: _Places
    ends: _Places


class TooMany(ValueError):
    """There are more values than the caller takes."""


def inside(text: bytes | memoryview, *, limit: int) -> Extents:
    """The extents of the strings (names of members included), arrays and objects that stand directly in an array or
    object. Raises `TooMany` for more than ``limit``, and then has looked no further."""
    scan = _Scan()
    starts, ends, found = [_NONE], [_NONE], 0
    for offset in range(0, len(text), _WINDOW):
        opened, closed = scan.feed(np.frombuffer(text[offset : offset + _WINDOW], np.uint8))
        starts.append(opened + offset)
        ends.append(closed + offset)
        found += len(opened)
        if found > limit:
            raise TooMany
    count = min(found, sum(map(len, ends)))  # one that does not end is no value
    return Extents(np.concatenate(starts)[:count], np.concatenate(ends)[:count])


class _Scan:
    """What is known at the end of one window and the start of the next."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False  # the first byte, by a backslash before it

    def feed(self, codes: NDArray[np.uint8]) -> tuple[_Places, _Places]:
        """Where values begin, and where they have ended."""
        quotes = self._quotes(codes)
        brackets, steps = self._brackets(codes, quotes)
        depths = np.concatenate(([self._depth], self._depth + np.cumsum(steps)))
        # Quotes have no bracket that counts between them, so both are at the same depth.
        is_direct = depths[np.searchsorted(brackets, quotes)] == _DIRECT
        is_first = (np.arange(len(quotes)) + self._is_in_string) % 2 == 0
        opened = quotes[is_direct & is_first], brackets[(steps == 1) & (depths[1:] == _INNER)]
        closed = quotes[is_direct & ~is_first], brackets[(steps == -1) & (depths[1:] == _DIRECT)]
        self._depth = int(depths[-1])
        self._is_in_string ^= len(quotes) % 2 == 1
        return np.sort(np.concatenate(opened)), np.sort(np.concatenate(closed)) + 1

    def _quotes(self, codes: NDArray[np.uint8]) -> _Places:
        """Those at which a string begins or ends."""
        is_quote = codes == _QUOTE
        backslashes = np.flatnonzero(codes == _BACKSLASH)
        if self._is_escaped or len(backslashes):
            escaped = _escaped(backslashes, is_first_escaped=self._is_escaped)
            self._is_escaped = bool(len(escaped)) and int(escaped[-1]) == len(codes)
            is_quote[escaped[: len(escaped) - self._is_escaped]] = False
        return np.flatnonzero(is_quote)

    def _brackets(self, codes: NDArray[np.uint8], quotes: _Places) -> tuple[_Places, NDArray[Any]]:
        """Those outside strings, and by how much each changes the depth."""
        folded = codes | _BIT_5
        is_opening = folded == _OPENING
        brackets = np.flatnonzero(is_opening | (folded == _CLOSING))
        is_outside = (np.searchsorted(quotes, brackets) + self._is_in_string) % 2 == 0
        brackets = brackets[is_outside]
        return brackets, np.where(is_opening[brackets], 1, -1)


def _escaped(backslashes: _Places, *, is_first_escaped: bool) -> _Places:
    """The places of characters behind a backslash that is not itself escaped: in a run of them each second one is."""
    if not len(backslashes):
        return np.zeros(1, np.intp)
    begins = np.diff(backslashes, prepend=-2) != 1
    starts = np.maximum.accumulate(np.where(begins, backslashes, 0))
    if is_first_escaped:
        starts[starts == 0] += backslashes[0] == 0
    escaped: _Places = backslashes[(backslashes - starts) % 2 == 0] + 1
    return np.concatenate(([0], escaped)) if is_first_escaped else escaped
