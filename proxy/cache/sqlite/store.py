"""One file on this machine, shared by all its processes, bounded in bytes.

Values lie apart from keys, appended in 32 KiB pages, five 1536-d vectors to a page: in SQLite's usual 4 KiB pages each
would waste a quarter of its room, and noting that a value was read would rewrite it.

The file may be damaged, and SQLite finds only some kinds of damage. So a slot may have no value, or another's; such a
slot is a miss, and a write replaces it and leaves the other's value alone.
"""

import asyncio
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from proxy.cache.sqlite.file import FAILURES, PAGE_BYTES, DamagedFile, DatabaseThread, transaction
from proxy.cache.sqlite.salvage import Salvage
from proxy.cache.store import NOTHING, Unleased
from proxy.errors import StoreError

_log = logging.getLogger(__name__)

_CHUNK = 256  # keys a statement: SQLite's default limit on parameters was once 999
# A value's time of last read is kept to this precision, so that a busy one is not written at every read.
_READ_AT_PRECISION_S = 60
# When room is needed, at least this share of the entries goes: finding the oldest is a scan of all keys.
_EVICT_SHARE = 64
# A process notes its use of the file this often, and its limit counts until it has not for this long.
_SIGN_EVERY_S = 3600
_SIGNED_FOR_S = 24 * 3600
_SPARE_BYTES = 64 * PAGE_BYTES  # for SQLite's own pages

# A value is a slot's own if it has the slot's key, or none as in files of earlier versions.
_OF_KEYS = (
    " FROM slot JOIN value ON value.id = slot.id AND (value.key = slot.key OR value.key IS NULL) WHERE slot.key IN ("
)
_SELECT = f"SELECT slot.key, slot.id, read_at, value{_OF_KEYS}"
_COUNT = f"SELECT count(*){_OF_KEYS}"
# A time of last read may be damaged, and must not keep its slot for ever.
_OLDEST = (
    "SELECT slot.key, value.id, coalesce(length(value), 0)"
    " FROM (SELECT key, id FROM slot ORDER BY min(read_at, ?), id LIMIT ?) AS slot"
    " LEFT JOIN value ON value.id = slot.id AND (value.key = slot.key OR value.key IS NULL)"
)


class SQLiteStore(Unleased):
    def __init__(self, path: Path, *, limit_bytes: int, clock: Callable[[], float] = time.time) -> None:
        """If several processes with different limits use the file, the largest limit counts."""
        self._path = path = path.resolve()  # SQLite names its log by the real path, which is what is set aside
        self._limit_bytes = limit_bytes
        self._clock = clock
        # A connection and a thread each for reading and writing: in WAL mode neither waits for the other.
        self._reader = DatabaseThread("sqlite-read", path, on_set_aside=self._begin_salvage)
        self._writer = DatabaseThread("sqlite-write", path, on_set_aside=self._begin_salvage)
        self._touched: set[bytes] = set()
        self._touching: Future[None] | None = None
        self._id = os.urandom(16)  # under which this process is known to the others
        self._signed_at_s = float("-inf")
        self._has_said_limit = False
        self._salvage: Salvage | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._path}, limit {self._limit_bytes} bytes>"

    # --- reading

    async def get_many(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        try:
            async with asyncio.timeout(timeout_s):
                found = await self._reader.run(_select, keys)
        except TimeoutError:
            raise StoreError("timeout", f"{self._path}: no answer in {timeout_s * 1000:.0f} ms") from None
        now_s = self._clock()
        stale = now_s - _READ_AT_PRECISION_S
        touched = {key for key, (_, read_at, _) in found.items() if read_at < stale}
        if touched or now_s - self._signed_at_s >= _SIGN_EVERY_S:
            self._signed_at_s = now_s
            self._touch(touched)
        return {key: value for key, (_, _, value) in found.items()}

    def _touch(self, keys: set[bytes]) -> None:
        """Note that ``keys`` were read, soon: while one note is being written the next ones gather."""
        self._touched |= keys
        if not self._closed and (self._touching is None or self._touching.done()):
            self._touching = self._writer.submit(self._write_touched)

    def _write_touched(self, connection: sqlite3.Connection) -> None:
        touched, self._touched = self._touched, set()
        now = int(self._clock())
        with transaction(connection):
            self._sign_in(connection, now)
            connection.executemany("UPDATE slot SET read_at = ? WHERE key = ?", [(now, key) for key in touched])

    # --- writing

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: float | None,  # room is made by eviction
        overwrite: bool,
        spoilt: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]:
        return await self._writer.run(self._put, values, overwrite, spoilt)

    def _put(
        self,
        connection: sqlite3.Connection,
        values: Mapping[bytes, bytes],
        overwrite: bool,
        spoilt: Mapping[bytes, bytes],
    ) -> dict[bytes, bytes]:
        now = int(self._clock())
        with transaction(connection):
            self._sign_in(connection, now)
            limit_bytes = self._common_limit(connection, now)
            standing = _select(connection, list(values))
            replaced = {key: row for key, row in standing.items() if overwrite or spoilt.get(key) == row[2]}
            connection.executemany("DELETE FROM slot WHERE key = ?", [(key,) for key in replaced])
            fresh = {key: value for key, value in values.items() if key not in standing or key in replaced}
            spare = sum(len(value) for _, _, value in replaced.values())
            # Replaced and evicted values give their places to new ones, so that a full file does not become a sieve.
            excess = _bytes_used(connection) + sum(map(len, fresh.values())) - spare - limit_bytes
            freed = dict.fromkeys([*(id_ for id_, _, _ in replaced.values()), *_evict(connection, excess, now)])
            _insert(connection, fresh, freed, now)
            _keep_within(connection, limit_bytes, fresh, now)
            _require(connection, list(fresh))
        return {key: value for key, (_, _, value) in standing.items() if key not in replaced}

    # --- several processes, several limits

    def _sign_in(self, connection: sqlite3.Connection, now: int) -> None:
        """Note that this process uses the file, unless that was noted not long ago; forget those that no longer do."""
        self._signed_at_s = now
        query = "SELECT 1 FROM proxy WHERE id = ? AND used_at BETWEEN ? AND ?"
        if connection.execute(query, (self._id, now - _SIGN_EVERY_S, now)).fetchone():
            return
        connection.execute(
            "INSERT OR REPLACE INTO proxy (id, limit_bytes, used_at) VALUES (?, ?, ?)",
            (self._id, self._limit_bytes, now),
        )
        connection.execute("DELETE FROM proxy WHERE used_at NOT BETWEEN ? AND ?", _signed(now))

    def _common_limit(self, connection: sqlite3.Connection, now: int) -> int:
        query = "SELECT limit_bytes FROM proxy WHERE used_at BETWEEN ? AND ?"
        limits = [limit for (limit,) in connection.execute(query, _signed(now)) if isinstance(limit, int)]
        largest = max(limits, default=0)
        if largest > self._limit_bytes and not self._has_said_limit:
            self._has_said_limit = True
            _log.warning(
                "%s is also used with a larger --store-limit, %d bytes, which counts until that process has ended",
                self._path,
                largest,
            )
        return max(self._limit_bytes, largest)

    def _sign_out(self, connection: sqlite3.Connection) -> None:
        with transaction(connection):
            connection.execute("DELETE FROM proxy WHERE id = ?", (self._id,))

    # --- files that were set aside

    def _begin_salvage(self, aside: Path) -> None:
        """Copy what is whole of a file that was set aside into the new one, beside other work. Called by a thread."""
        with suppress(RuntimeError):  # the thread is ending
            self._writer.submit(self._open_salvage, aside)

    def _open_salvage(self, connection: sqlite3.Connection, aside: Path) -> None:
        self._end_salvage()
        if shutil.disk_usage(aside.parent).free < aside.stat().st_size:
            _log.warning("nothing is copied from %s: there is no room on the disk", aside.name)
            return
        try:
            self._salvage = Salvage(aside)
        except FAILURES as error:
            _log.warning("nothing can be read of %s (%s)", aside.name, error)
        else:
            self._copy(connection)

    def _copy(self, connection: sqlite3.Connection) -> None:
        """Copy a chunk, and come again after what waits meanwhile."""
        salvage = self._salvage
        if salvage is None or self._closed:
            return
        values = salvage.chunk()
        limit_bytes = self._common_limit(connection, int(self._clock()))
        is_full = _bytes_used(connection) + sum(map(len, values.values())) > limit_bytes
        if not values or is_full:
            _log.warning("%d entries were copied from %s", salvage.values, salvage.aside.name)
            self._end_salvage()
            return
        self._put(connection, values, overwrite=False, spoilt=NOTHING)
        with suppress(RuntimeError):  # the thread is ending
            self._writer.submit(self._copy)

    def _end_salvage(self) -> None:
        if self._salvage is not None:
            self._salvage.close()
            self._salvage = None

    async def aclose(self) -> None:
        self._closed = True
        if self._signed_at_s > float("-inf"):
            with suppress(StoreError):
                await self._writer.run(self._sign_out)
        await asyncio.gather(self._reader.aclose(), self._writer.aclose())
        self._end_salvage()


def _signed(now: int) -> tuple[int, int]:
    """Between which times processes used the file that are taken to use it now."""
    return now - _SIGNED_FOR_S, now + _SIGNED_FOR_S


def _select(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, tuple[int, int, bytes]]:
    """key → (id, read_at, value) of the keys that are there."""
    found = {}
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        marks = ",".join("?" * len(chunk))
        for key, id_, read_at, value in connection.execute(f"{_SELECT}{marks})", chunk):
            # Another type may be there; as bytes it fails the record's checks, and a time of 0 is noted anew.
            found[key] = id_, read_at if isinstance(read_at, int) else 0, value if isinstance(value, bytes) else b""
    return found


def _insert(connection: sqlite3.Connection, fresh: Mapping[bytes, bytes], freed: dict[int, None], now: int) -> None:
    """Store values in the places of ``freed`` ones as far as there are any, whose ids these are; delete the others."""
    (last,) = connection.execute("SELECT max(id) FROM value").fetchone()
    if last is not None and connection.execute("SELECT 1 FROM value WHERE id > ?", (last,)).fetchone():
        raise DamagedFile("ids are out of order")  # new ones would be those of other values
    for key, value in fresh.items():
        id_ = connection.execute(
            "INSERT OR REPLACE INTO value (id, key, value) VALUES (?, ?, ?)",
            (freed.popitem()[0] if freed else None, key, value),
        ).lastrowid
        # A slot may be there whose value is missing or another's.
        connection.execute("INSERT OR REPLACE INTO slot (key, id, read_at) VALUES (?, ?, ?)", (key, id_, now))
    _delete_values(connection, freed)


def _require(connection: sqlite3.Connection, keys: Sequence[bytes]) -> None:
    """Raises `DamagedFile` if what was written can't be found: where keys are out of order SQLite does not notice."""
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        (found,) = connection.execute(f"{_COUNT}{','.join('?' * len(chunk))})", chunk).fetchone()
        if found != len(chunk):
            raise DamagedFile("what was written is not found")


def _evict(connection: sqlite3.Connection, excess: int, now: int) -> list[int]:
    """Take out the keys that were read longest ago until ``excess`` bytes are free; returns their values' ids."""
    freed: list[int] = []
    while excess > 0 and (oldest := _oldest(connection, now)):
        _delete_slots(connection, [key for key, _, _ in oldest])
        freed += [id_ for _, id_, _ in oldest if id_ is not None]
        excess -= sum(size for _, _, size in oldest)
    if excess > 0:  # values that no slot leads to take the room
        connection.execute("DELETE FROM value WHERE id NOT IN (SELECT id FROM slot WHERE id IS NOT NULL)")
        freed.clear()
    return freed


def _keep_within(connection: sqlite3.Connection, limit_bytes: int, fresh: Mapping[bytes, bytes], now: int) -> None:
    """Small values that lie scattered leave few whole pages when they go, so that what fits by its bytes may not fit by
    its pages."""
    while (used := _bytes_used(connection)) > limit_bytes:
        oldest = [(key, id_) for key, id_, _ in _oldest(connection, now) if key not in fresh]
        if not oldest:
            if used > limit_bytes + sum(len(value) + 2 * PAGE_BYTES for value in fresh.values()) + _SPARE_BYTES:
                raise DamagedFile("pages without content take the room")
            return
        _delete_slots(connection, [key for key, _ in oldest])
        _delete_values(connection, [id_ for _, id_ in oldest if id_ is not None])


def _delete_slots(connection: sqlite3.Connection, keys: Sequence[bytes]) -> None:
    """Raises `DamagedFile` if none of them goes, for which `_oldest` would name them for ever."""
    cursor = connection.executemany("DELETE FROM slot WHERE key = ?", [(key,) for key in keys])
    if not cursor.rowcount:
        raise DamagedFile("keys are out of order")


def _delete_values(connection: sqlite3.Connection, ids: Iterable[int]) -> None:
    connection.executemany("DELETE FROM value WHERE id = ?", [(id_,) for id_ in ids])


def _oldest(connection: sqlite3.Connection, now: int) -> list[tuple[bytes, int | None, int]]:
    """(key, id, size) of the share of the entries that were read longest ago; empty when there are none. A slot without
    a value of its own has no id."""
    (entries,) = connection.execute("SELECT count(*) FROM slot").fetchone()
    return connection.execute(_OLDEST, (now, max(1, entries // _EVICT_SHARE))).fetchall()


def _bytes_used(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    if free >= max(1, pages):
        raise DamagedFile("more pages are free than there are")
    return int(pages - free) * PAGE_BYTES
