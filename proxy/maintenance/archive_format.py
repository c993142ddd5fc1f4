"""The format of exported entries, version 1 (pure).

A file is a sequence of frames:

    marker   4 bytes   F5 45 43 and the kind: H header, R record, C cursor, E end
    length   4 bytes   of the content, big-endian
    check    4 bytes   the low half of the XXH3-64 of marker and length, big-endian
    content
    checksum 8 bytes   XXH3-64 of all of that, big-endian

The first frame is a header, a JSON object with `format` (1) and words about the origin. A record's content is its key
of 32 bytes and the value that the store had under it, bit for bit. A cursor says where an interrupted export continues.
The end has the number of records as 8 bytes; a file without it was cut off. A reader skips what is damaged, and kinds
that it does not know: the next frame begins at the next marker whose check and checksum are right.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import orjson
import xxhash

from proxy.protocol.keys import KEY_BYTES

_VERSION: Final = 1
_MARK = BEGINNING = b"\xf5EC"
_HEADER, _RECORD, _CURSOR, _END = b"H", b"R", b"C", b"E"
_HEAD_BYTES, _CHECKSUM_BYTES, _COUNT_BYTES = 12, 8, 8
_LENGTH_AT, _CHECK_AT = 4, 8  # in a head
# Far above a record of 16,384 dimensions, 131 kB.
MAX_CONTENT_BYTES = 8 * 1024**2


class Header(NamedTuple):
    fields: Mapping[str, Any]


class Entry(NamedTuple):
    key: bytes
    value: bytes
    end: int  # offset in the file


class Cursor(NamedTuple):
    position: bytes
    end: int


class End(NamedTuple):
    entries: int


class Damage(NamedTuple):
    """Bytes that belong to no whole frame."""

    start: int
    end: int


Part = Header | Entry | Cursor | End | Damage


class UnknownFormat(ValueError):
    """Not an export, or one of a later version. The message is for the operator."""


def header(**fields: Any) -> bytes:
    return _frame(_HEADER, orjson.dumps({"format": _VERSION, **fields}))


def entry(key: bytes, value: bytes) -> bytes:
    return _frame(_RECORD, key + value)


def cursor(position: bytes) -> bytes:
    return _frame(_CURSOR, position)


def end(entries: int) -> bytes:
    return _frame(_END, entries.to_bytes(_COUNT_BYTES))


def _frame(kind: bytes, content: bytes) -> bytes:
    head = _MARK + kind + len(content).to_bytes(4)
    frame = b"".join((head, _check(head), content))
    return frame + xxhash.xxh3_64_digest(frame)


def _check(head: bytes) -> bytes:
    return xxhash.xxh3_64_digest(head)[4:]


class Decoder:
    """Reads a file in pieces of any size. It holds one piece, and one frame."""

    def __init__(self) -> None:
        self._data = b""
        self._offset = 0  # in the file, of the first byte of `_data`
        self._damaged_from: int | None = None
        self._has_frame = False

    def feed(self, data: bytes) -> Iterator[Part]:
        """The parts that are complete with ``data``. Raises `UnknownFormat`."""
        self._data += data
        return self._parts(is_last=False)

    def close(self) -> Iterator[Part]:
        """The parts that are left at the end of the file. Raises `UnknownFormat` for a file without any frame."""
        yield from self._parts(is_last=True)
        if not self._has_frame:
            raise UnknownFormat("it is not an export of embedding-proxy cache export")
        yield from self._damage_until(self._offset)

    def _parts(self, *, is_last: bool) -> Iterator[Part]:
        data, at = self._data, 0
        while at < len(data):
            stop = _end_of_frame(data, at, is_last=is_last)
            if stop is None:
                break
            if not stop:
                self._damaged_from = self._offset + at if self._damaged_from is None else self._damaged_from
                at = _next_mark(data, at + 1, is_last=is_last)
                continue
            yield from self._damage_until(self._offset + at)
            self._has_frame = True
            part = _part(data[at + 3 : at + 4], data[at + _HEAD_BYTES : stop - _CHECKSUM_BYTES], self._offset + stop)
            at = stop
            if part is not None:
                yield part
        self._data = data[at:]
        self._offset += at

    def _damage_until(self, stop: int) -> Iterator[Damage]:
        if self._damaged_from is not None:
            yield Damage(self._damaged_from, stop)
            self._damaged_from = None


def _end_of_frame(data: bytes, at: int, *, is_last: bool) -> int | None:
    """Where the frame that begins ``at`` ends; 0 if no whole frame begins there, None if that depends on what comes."""
    head = data[at : at + _HEAD_BYTES]
    if len(head) < _HEAD_BYTES:
        return 0 if is_last else None
    length = int.from_bytes(head[_LENGTH_AT:_CHECK_AT])
    is_head = head.startswith(_MARK) and length <= MAX_CONTENT_BYTES and _check(head[:_CHECK_AT]) == head[_CHECK_AT:]
    if not is_head:
        return 0
    stop = at + _HEAD_BYTES + length + _CHECKSUM_BYTES
    if stop > len(data):
        return 0 if is_last else None
    checksum = xxhash.xxh3_64_digest(memoryview(data)[at : stop - _CHECKSUM_BYTES])
    return stop if checksum == data[stop - _CHECKSUM_BYTES : stop] else 0


def _next_mark(data: bytes, at: int, *, is_last: bool) -> int:
    """Where the next frame may begin."""
    found = data.find(_MARK, at)
    if found >= 0:
        return found
    return len(data) if is_last else max(at, len(data) - len(_MARK) + 1)


def _part(kind: bytes, content: bytes, end: int) -> Part | None:
    """None for a frame of an unknown kind, and for content that the kind does not allow."""
    match kind:
        case b"H":
            return _header(content)
        case b"R" if len(content) >= KEY_BYTES:
            return Entry(content[:KEY_BYTES], content[KEY_BYTES:], end)
        case b"C":
            return Cursor(content, end)
        case b"E" if len(content) == _COUNT_BYTES:
            return End(int.from_bytes(content))
    return None


def _header(content: bytes) -> Header:
    try:
        fields = orjson.loads(content)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict) or fields.get("format") != _VERSION:
        found = fields.get("format") if isinstance(fields, dict) else None
        raise UnknownFormat(f"its format is {found!r}; this version of embedding-proxy reads format {_VERSION}")
    return Header(fields)
