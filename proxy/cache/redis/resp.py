"""Replies of a Redis server, checked before they are parsed (pure).

A reply declares the sizes of its arrays and strings, and hiredis trusts them: for the 14 bytes `*1000000000` it
allocates gigabytes and stalls the process. So the declarations are checked first, and a reply that does not fit its
command closes the connection. RESP2 only, which is what the connections use:
https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

# Far above a record of 16,384 dimensions (131 kB) and a reply with 128 of these.
MAX_VALUE_BYTES = 8 * 1024**2
MAX_REPLY_BYTES = 32 * 1024**2
_MAX_LINE_BYTES = 4096
MAX_SIZE_BYTES = 32  # of a line that declares a size
# CLUSTER SLOTS, of 16,384 ranges with a dozen elements each. XRANGE has far fewer.
_MAX_TREE_ELEMENTS = 200_000
_MAX_TREE_DEPTH = 5
CRLF = b"\r\n"
_STRING, _ARRAY = ord("$"), ord("*")


class UnexpectedReply(Exception):
    """The bytes can't be a reply to the command that was sent."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Constraints on the reply to one command, which may also be an error.

    ``kinds`` are the type bytes allowed for the reply, ``element_kinds`` those of its elements. ``elements`` is their
    number, None for any number and nesting.
    """

    kinds: bytes
    elements: int | None = 0
    element_kinds: bytes = b""


STATUS = Shape(b"+$")  # OK, or null
VALUE = Shape(b"$")
NUMBER = Shape(b":")
TREE = Shape(b"*", None, b"*$:+")


def values(count: int) -> Shape:
    return Shape(b"*", count, b"$")


class ReplyGuard:
    """Checks the bytes that a connection receives. A reply that was not announced, as while connecting, must be a
    status."""

    def __init__(self) -> None:
        self._expected: deque[Shape] = deque()
        self._shape = STATUS  # of the reply being received
        self._head = b""  # the beginning of an incomplete line
        self._skip = 0  # bytes left of a string, its CRLF included
        self._missing: list[int] = []  # elements left of the open arrays, outermost first
        self._elements = 0  # that the reply has declared
        self._bytes = 0  # of its strings, likewise

    def expect(self, shapes: Iterable[Shape]) -> None:
        """The next replies must have these shapes."""
        self._expected.extend(shapes)

    def feed(self, data: bytes) -> None:
        """Raises `UnexpectedReply`. After that the connection must not be read any more."""
        data = self._head + data if self._head else data
        self._head = b""
        at, end = 0, len(data)
        while at < end:
            if len(self._missing) == 1 and not self._skip and self._shape.elements is not None:
                at = self._strings(data, at)
            if self._skip:
                step = min(self._skip, end - at)
                at += step
                self._skip -= step
                if not self._skip:
                    self._complete()
                continue
            if at == end:
                return
            line_end = data.find(CRLF, at, at + _MAX_LINE_BYTES)
            if line_end < 0:
                if end - at >= _MAX_LINE_BYTES:
                    raise UnexpectedReply("a line that is too long")
                self._head = data[at:]
                return
            self._line(data[at:line_end])
            at = line_end + len(CRLF)

    def _strings(self, data: bytes, at: int) -> int:
        """Skip the complete strings of an array, which are most of all bytes received. Returns the offset of the first
        incomplete or invalid one, which `feed` checks."""
        missing, total, end = self._missing[0], self._bytes, len(data)
        with suppress(ValueError):
            while missing:
                line_end = data.find(CRLF, at, at + MAX_SIZE_BYTES)
                if line_end < 0 or data[at] != _STRING:
                    break
                size = int(data[at + 1 : line_end])
                after = line_end + 4 + size if size >= 0 else line_end + 2
                if after > end or total + size > MAX_REPLY_BYTES:
                    break
                at, missing = after, missing - 1
                total += max(0, size)
        self._bytes = total
        self._missing = [missing] if missing else []
        return at

    def _line(self, line: bytes) -> None:
        is_first = not self._missing
        if is_first:
            self._shape = self._expected.popleft() if self._expected else STATUS
            self._elements = self._bytes = 0
            if line.startswith(b"-"):
                return
        kind = line[0] if line else 0
        if kind not in (self._shape.kinds if is_first else self._shape.element_kinds):
            raise UnexpectedReply(f"type {line[:1]!r}")
        if kind == _STRING:
            self._string(_declared(line))
        elif kind == _ARRAY:
            self._array(_declared(line), is_first=is_first)
        elif self._shape is STATUS and line != b"+OK":
            raise UnexpectedReply("a status other than OK")
        else:
            self._complete()

    def _string(self, size: int) -> None:
        if size < 0:
            self._complete()
            return
        self._bytes += size
        if self._shape is STATUS or size > MAX_VALUE_BYTES or self._bytes > MAX_REPLY_BYTES:
            raise UnexpectedReply(f"a string of {size} bytes")
        self._skip = size + len(CRLF)

    def _array(self, size: int, *, is_first: bool) -> None:
        wanted = self._shape.elements
        self._elements += max(0, size)
        if wanted is None:
            is_right = self._elements <= _MAX_TREE_ELEMENTS and len(self._missing) < _MAX_TREE_DEPTH
        else:
            is_right = is_first and size in (wanted, -1)
        if not is_right:
            raise UnexpectedReply(f"an array of {size} elements")
        if size > 0:
            self._missing.append(size)
        else:
            self._complete()

    def _complete(self) -> None:
        """An element is complete, and with it the arrays whose last element it is."""
        while self._missing:
            self._missing[-1] -= 1
            if self._missing[-1]:
                return
            self._missing.pop()


def _declared(line: bytes) -> int:
    try:
        return int(line[1:])
    except ValueError:
        raise UnexpectedReply("a size that is not a number") from None
