"""One file on this machine, shared by all its processes, bounded in bytes.

Values are stored apart from keys, so that updating the time of last read does not rewrite the value. They are appended
in 32 KiB pages, which hold five 1536-d vectors each: in SQLite's usual 4 KiB pages a vector would waste a quarter of
its room.
"""

import asyncio
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from proxy.cache.sqlite import changes, counters, rows, scan
from proxy.cache.sqlite.file import FAILURES, DatabaseThread, transaction
from proxy.cache.sqlite.salvage import Salvage
from proxy.cache.sqlite.size_limit import SharedLimit
from proxy.cache.store import NOTHING, TTL, Changes, Page, Purge, Unleased
from proxy.cache.timed_wait import timed_wait
from proxy.errors import StoreError

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

# The precision of a value's time of last read, so that a busy value is not updated at every read.
READ_AT_PRECISION_S = 60
_KEYS_PER_READ = 256


class SQLiteStore(Unleased):
    def __init__(
        self, path: Path, *, limit_bytes: int, clock: Callable[[], float] = time.time, replaces_damaged: bool = True
    ) -> None:
        """If several processes with different limits use the file, the largest limit applies.

        A damaged file is set aside and replaced, or, without ``replaces_damaged``, left as it is. Another program's
        file is always left as it is; each use fails.
        """
        self._path = path = path.resolve()  # SQLite names its log by the real path, and all of them are renamed
        self._limit = SharedLimit(path, limit_bytes)
        self._limit_bytes = limit_bytes
        self._clock = clock
        # A connection and a thread each for reading and writing: in WAL mode neither waits for the other.
        thread = partial(
            DatabaseThread,
            path=path,
            on_set_aside=self._begin_salvage,
            recognized=set(),
            replaces=replaces_damaged,
        )
        self._reader, self._writer = thread("sqlite-read"), thread("sqlite-write")
        self._position = changes.Position()  # used by the reader's thread only
        self._touched: set[bytes] = set()
        self._touching: Future[None] | None = None
        self._salvage: Salvage | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._path}, limit {self._limit_bytes} bytes>"

    async def get_many(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        now = asyncio.get_running_loop().time
        end_s = now() + timeout_s
        found: dict[bytes, bytes] = {}
        # One part at a time: reads of other requests run in between.
        for start in range(0, len(keys), _KEYS_PER_READ):
            read = asyncio.wrap_future(self._reader.submit(self._read, keys[start : start + _KEYS_PER_READ]))
            try:
                await timed_wait([read], timeout_s=max(0.0, end_s - now()))
                is_done = read.done()
            finally:
                read.cancel()  # what nobody waits for any more is not read
            if not is_done:
                raise StoreError("timeout", f"no result in {timeout_s * 1000:.0f} ms", found=found)
            try:
                found |= read.result()
            except StoreError as failure:
                raise StoreError(failure.reason, str(failure), found=found) from failure
        return found

    def _read(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        now_s = self._clock()
        found, stale = rows.read(connection, keys, now_s - READ_AT_PRECISION_S)
        if stale or self._limit.is_due(now_s):
            self._limit.registered_at_s = now_s
            self._touch(stale)
        return found

    async def add(self, name: str, amount: int, *, expires_at_s: int) -> int:
        """As `proxy.cache.store.CounterStore`."""
        now_s = int(self._clock())
        return await self._writer.run(lambda connection: counters.add(connection, name, amount, expires_at_s, now_s))

    def _touch(self, keys: set[bytes]) -> None:
        """Update the time of last read of ``keys`` soon. While one update runs, the next keys are collected.

        Called by the reading thread.
        """
        self._touched |= keys
        if not self._closed and (self._touching is None or self._touching.done()):
            with suppress(RuntimeError):  # the thread is ending
                self._touching = self._writer.submit(self._write_touched)

    def _write_touched(self, connection: sqlite3.Connection) -> None:
        touched, self._touched = self._touched, set()
        now = int(self._clock())
        with transaction(connection):
            self._limit.register(connection, now)
            connection.executemany("UPDATE slot SET read_at = ? WHERE key = ?", [(now, key) for key in touched])

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: TTL,  # unused: eviction makes room
        overwrite: bool,
        invalid: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]:
        return await self._writer.run(self._put, values, overwrite, invalid)

    def _put(
        self,
        connection: sqlite3.Connection,
        values: Mapping[bytes, bytes],
        overwrite: bool,
        invalid: Mapping[bytes, bytes],
    ) -> dict[bytes, bytes]:
        now = int(self._clock())
        with transaction(connection):
            self._limit.register(connection, now)
            limit_bytes = self._limit.effective_bytes(connection, now)
            return rows.put(connection, values, overwrite=overwrite, invalid=invalid, limit_bytes=limit_bytes, now=now)

    async def scan(self, cursor: bytes = b"") -> Page:
        return await self._reader.run(scan.page, self._path, cursor)

    async def delete_many(self, keys: Collection[bytes]) -> int:
        return await self._writer.run(self._in_transaction, rows.delete, keys)

    async def announce_purge(self, purge: Purge) -> None:
        await self._writer.run(self._in_transaction, changes.announce_purge, purge)

    def _in_transaction(self, connection: sqlite3.Connection, work: Callable[..., _T], *args: object) -> _T:
        with transaction(connection):
            return work(connection, *args)

    async def changes(self) -> Changes:
        return await self._reader.run(self._position.read)

    def _begin_salvage(self, aside: Path) -> None:
        """Copy the readable values of a damaged file, renamed to ``aside``, into the new one. Called by a thread."""
        with suppress(RuntimeError):  # the thread is ending
            self._writer.submit(self._open_salvage, aside)

    def _open_salvage(self, connection: sqlite3.Connection, aside: Path) -> None:
        self._end_salvage()
        if shutil.disk_usage(aside.parent).free < aside.stat().st_size:
            _log.warning("no entries copied from %s: not enough disk space", aside.name)
            return
        try:
            self._salvage = Salvage(aside)
        except FAILURES as error:
            _log.warning("no entries copied from %s: not readable (%s)", aside.name, error)
        else:
            self._copy(connection)

    def _copy(self, connection: sqlite3.Connection) -> None:
        """Copy one chunk, and submit the next one behind the work that waits for the thread."""
        salvage = self._salvage
        if salvage is None or self._closed:
            return
        values = salvage.chunk()
        limit_bytes = self._limit.effective_bytes(connection, int(self._clock()))
        is_full = rows.bytes_used(connection) + sum(map(len, values.values())) > limit_bytes
        if not values or is_full:
            _log.warning("%d entries copied from %s", salvage.values, salvage.aside.name)
            self._end_salvage()
            return
        self._put(connection, values, overwrite=False, invalid=NOTHING)
        with suppress(RuntimeError):  # the thread is ending
            self._writer.submit(self._copy)

    def _end_salvage(self) -> None:
        if self._salvage is not None:
            self._salvage.close()
            self._salvage = None

    async def aclose(self) -> None:
        self._closed = True
        if self._limit.is_registered:
            with suppress(StoreError):
                await self._writer.run(self._limit.unregister)
        await asyncio.gather(self._reader.aclose(), self._writer.aclose())
        self._end_salvage()
