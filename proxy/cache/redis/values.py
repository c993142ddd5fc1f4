"""The values of an MGET, taken out of its reply as it is received (pure).

Most bytes that a proxy with a cold memory receives are values. The guard and hiredis would read them twice and copy
them twice more. This module reads only arrays of strings; the guard and hiredis get any other reply, such as an error.
"""

from proxy.cache.redis.resp import CRLF, MAX_REPLY_BYTES, MAX_SIZE_BYTES, MAX_VALUE_BYTES, UnexpectedReply

_NULL = b"-1"


class ValuesReader:
    """Reads one reply, an array of ``count`` strings or nulls, within the limits of `proxy.cache.redis.resp`."""

    __slots__ = ("_begun", "_bytes", "_head", "_line", "_missing_bytes", "count", "has_more", "values")

    def __init__(self, count: int) -> None:
        self.count = count
        self._head: bytes | None = b"*%d\r\n" % count  # None once it has been received
        self._line = b""  # the beginning of an incomplete line
        self._begun: list[bytes] = []  # the pieces of an incomplete string
        self._missing_bytes = 0  # of it, its CRLF included
        self._bytes = 0  # of all strings so far
        self.values: list[bytes | None] = []
        self.has_more = False  # whether more was received than the reply

    @property
    def is_complete(self) -> bool:
        return len(self.values) == self.count

    def feed(self, data: bytes) -> bytes | None:
        """Returns None, or all bytes so far if the reply is not such an array and others have to read it. Raises
        `UnexpectedReply`."""
        at = 0
        if self._head is not None:
            data = self._line + data
            if len(data) < len(self._head) and self._head.startswith(data):
                self._line = data
                return None
            if not data.startswith(self._head):
                return data
            at, self._head, self._line = len(self._head), None, b""
        elif self._missing_bytes:
            at = self._complete(data)
        elif self._line:
            at = self._resume(data)
        if at < len(data):
            at = self._read(data, at)
        self.has_more = at < len(data)
        return None

    def _read(self, data: bytes, at: int) -> int:
        """Take strings from ``at`` on. Returns the offset behind the last byte that was taken."""
        values, missing, end = self.values, self.count - len(self.values), len(data)
        line, size = b"$", 0  # of the last string, since most have the same size
        while missing and at < end:
            if len(line) > 1 and data.startswith(line, at):
                start = at + len(line)
            else:
                start = data.find(CRLF, at, at + MAX_SIZE_BYTES) + len(CRLF)
                if start < len(CRLF):
                    return self._begin_line(data, at)
                line = data[at:start]
                size = _size(line)
                if size < 0:
                    values.append(None)
                    at, missing, line = start, missing - 1, b"$"
                    continue
            self._count_bytes(size)
            after = start + size
            if after + len(CRLF) > end:
                self._begun.append(data[start:])
                self._missing_bytes = after + len(CRLF) - end
                return end
            values.append(data[start:after])
            at, missing = after + len(CRLF), missing - 1
        return at

    def _begin_line(self, data: bytes, at: int) -> int:
        self._line = data[at:]
        if len(self._line) >= MAX_SIZE_BYTES:
            raise UnexpectedReply("a line that is too long")
        return len(data)

    def _resume(self, data: bytes) -> int:
        """Take the rest of the line that has begun, and the part of its string that is here."""
        begun, self._line = self._line, b""
        line_end = (begun + data[:MAX_SIZE_BYTES]).find(CRLF, 0, MAX_SIZE_BYTES)
        if line_end < 0:
            return self._begin_line(begun + data, 0) - len(begun)
        at = line_end + len(CRLF) - len(begun)
        size = _size(begun + data[:at])
        if size < 0:
            self.values.append(None)
            return at
        self._count_bytes(size)
        self._missing_bytes = size + len(CRLF)
        return at + self._complete(data[at : at + self._missing_bytes])

    def _complete(self, data: bytes) -> int:
        """Take the missing bytes of a string that are here. Returns their number."""
        taken = min(self._missing_bytes, len(data))
        self._begun.append(data[:taken])
        self._missing_bytes -= taken
        if not self._missing_bytes:
            self.values.append(b"".join(self._begun)[: -len(CRLF)])
            self._begun.clear()
        return taken

    def _count_bytes(self, size: int) -> None:
        self._bytes += size
        if self._bytes > MAX_REPLY_BYTES:
            raise UnexpectedReply(f"a string of {size} bytes")


def _size(line: bytes) -> int:
    """The size that a string's first line declares, which ends with CRLF; -1 for null. Raises `UnexpectedReply`."""
    digits = line[1 : -len(CRLF)]
    if not line.startswith(b"$"):
        raise UnexpectedReply(f"type {line[:1]!r}")
    if digits == _NULL:
        return -1
    if not digits.isdigit():
        raise UnexpectedReply("a size that is not a number")
    size = int(digits)
    if size > MAX_VALUE_BYTES:
        raise UnexpectedReply(f"a string of {size} bytes")
    return size
