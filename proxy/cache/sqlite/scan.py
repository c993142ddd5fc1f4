"""All values of a SQLite file, a page at a time, in the order in which the file has them.

A cursor is the id of the last value read, and whether a value without a key was seen on the way. Only files of earlier
versions have such values. A second pass over the slots finds them; its cursor is the last key.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from proxy.cache.sqlite.file import FAILURES, DamagedFile
from proxy.cache.store import Page
from proxy.errors import StoreError
from proxy.protocol.keys import KEY_BYTES

_T = TypeVar("_T", int, bytes)

_ROWS, _PAGE_BYTES = 256, 4 * 1024**2  # the least of both
_ID_BYTES = 8
_BY_ID, _BY_ID_KEYLESS, _BY_SLOT = b"i", b"k", b"s"  # the first byte of a cursor

# A value counts only if its key's slot refers to it, as for `rows`.
_VALUES = (
    "SELECT value.id, value.key, value, slot.id = value.id"
    " FROM value LEFT JOIN slot ON slot.key = value.key WHERE value.id > ? ORDER BY value.id LIMIT ?"
)
_KEYLESS = (
    "SELECT slot.key, CASE WHEN value.key IS NULL THEN value END"
    " FROM slot LEFT JOIN value ON value.id = slot.id WHERE slot.key > ? ORDER BY slot.key LIMIT ?"
)


def page(connection: sqlite3.Connection, path: Path, cursor: bytes) -> Page:
    """As `Store.scan`. Raises `StoreError` for a damaged file, and leaves that as it is: the proxies set it aside."""
    kind, position = cursor[:1] or _BY_ID, cursor[1:]
    try:
        if kind == _BY_SLOT:
            return _by_slot(connection, position)
        return _by_id(connection, position, has_keyless=kind == _BY_ID_KEYLESS)
    except FAILURES as error:
        raise StoreError("corrupt", f"{path}: the file can't be read on{_place(connection)} ({error})") from error


def _place(connection: sqlite3.Connection) -> str:
    """Where SQLite finds the first damage, in its own words: a page and its b-tree."""
    try:
        found = [line for (row,) in connection.execute("PRAGMA quick_check(1)") for line in row.decode().splitlines()]
    except FAILURES:
        return ""
    return "".join(f"; {line}" for line in found if "page" in line.lower())


def _by_id(connection: sqlite3.Connection, position: bytes, *, has_keyless: bool) -> Page:
    last = start = int.from_bytes(position, signed=True) if position else -(2**63)
    values: dict[bytes, bytes] = {}
    size_bytes = rows = 0
    for id_, key, value, is_of_slot in connection.execute(_VALUES, (last, _ROWS)):
        last, rows = id_, rows + 1
        has_keyless |= key is None
        if is_of_slot and _is_key(key):
            values[key] = value if isinstance(value, bytes) else b""
            size_bytes += len(values[key])
        if size_bytes >= _PAGE_BYTES:
            break
    if rows == _ROWS or size_bytes >= _PAGE_BYTES:
        _require_progress(start, last)
        kind = _BY_ID_KEYLESS if has_keyless else _BY_ID
        return Page(values, kind + last.to_bytes(_ID_BYTES, signed=True))
    return Page(values, _BY_SLOT if has_keyless else None)


def _by_slot(connection: sqlite3.Connection, start: bytes) -> Page:
    slots: Iterable[tuple[object, object]] = connection.execute(_KEYLESS, (start, _ROWS))
    values: dict[bytes, bytes] = {}
    last, rows = start, 0
    for key, value in slots:
        rows += 1
        if not isinstance(key, bytes):  # it is damaged
            continue
        last = key
        if isinstance(value, bytes) and _is_key(key):
            values[key] = value
    if rows < _ROWS:
        return Page(values, None)
    _require_progress(start, last)
    return Page(values, _BY_SLOT + last)


def _require_progress(start: _T, last: _T) -> None:
    """Raises `DamagedFile` if rows are out of order: the next page would begin where this one did."""
    if last <= start:
        raise DamagedFile("rows are out of order")


def _is_key(key: object) -> bool:
    return isinstance(key, bytes) and len(key) == KEY_BYTES
