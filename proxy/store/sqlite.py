"""One file on this machine, shared by all its processes, bounded in bytes.

Values lie apart from keys, appended in 32 KiB pages, five 1536-d vectors to a page: in SQLite's usual 4 KiB pages each
would waste a quarter of its room, and noting that a value was read would rewrite it.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from proxy.errors import StoreError
from proxy.store.base import NOTHING, Unleased

_T = TypeVar("_T")

_APPLICATION_ID = 0x656D6263  # "embc": tells our file from somebody's database
_SCHEMA_VERSION = 1
_PAGE_BYTES = 32 * 1024
_WAL_PAGES = 256  # 8 MiB, the most the write-ahead log grows before it is folded back in
_CHUNK = 256  # keys a statement: SQLite's default limit on parameters was once 999
_BUSY_TIMEOUT_S = 5.0
# A value's time of last read is kept to this precision, so that a busy one is not written at every read.
_READ_AT_PRECISION_S = 60
# When room is needed, at least this share of the entries goes: finding the oldest is a scan of all keys.
_EVICT_SHARE = 64

_SCHEMA = """
CREATE TABLE slot (key BLOB PRIMARY KEY, id INTEGER NOT NULL, read_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE value (id INTEGER PRIMARY KEY, value BLOB NOT NULL);
"""


class SQLiteStore(Unleased):
    def __init__(self, path: Path, *, limit_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._clock = clock
        # A connection and a thread each for reading and writing: in WAL mode neither waits for the other.
        self._reader = _Worker("sqlite-read", path)
        self._writer = _Worker("sqlite-write", path)
        self._touched: set[bytes] = set()
        self._touching: Future[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._path}, limit {self._limit_bytes} bytes>"

    async def get_many(self, keys: Sequence[bytes], *, budget_s: float) -> dict[bytes, bytes]:
        try:
            async with asyncio.timeout(budget_s):
                found = await self._reader.run(_select, keys)
        except TimeoutError:
            raise StoreError("timeout", f"{self._path}: no answer in {budget_s * 1000:.0f} ms") from None
        stale = self._clock() - _READ_AT_PRECISION_S
        touched = {key for key, (_, read_at, _) in found.items() if read_at < stale}
        if touched:
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
        with _transaction(connection):
            connection.executemany("UPDATE slot SET read_at = ? WHERE key = ?", [(now, key) for key in touched])

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
        with _transaction(connection):
            standing = _select(connection, list(values))
            replaced = {key: row for key, row in standing.items() if overwrite or spoilt.get(key) == row[2]}
            freed = [id_ for id_, _, _ in replaced.values()]
            connection.executemany("DELETE FROM slot WHERE key = ?", [(key,) for key in replaced])
            fresh = {key: value for key, value in values.items() if key not in standing or key in replaced}
            # Replaced and evicted values give their places to new ones, so that a full file does not become a sieve.
            freed += self._make_room(connection, fresh, spare=sum(len(value) for _, _, value in replaced.values()))
            for key, value in fresh.items():
                id_ = connection.execute(
                    "INSERT OR REPLACE INTO value (id, value) VALUES (?, ?)", (freed.pop() if freed else None, value)
                ).lastrowid
                connection.execute("INSERT INTO slot (key, id, read_at) VALUES (?, ?, ?)", (key, id_, now))
            connection.executemany("DELETE FROM value WHERE id = ?", [(id_,) for id_ in freed])
            self._keep_within_limit(connection, fresh)
        return {key: value for key, (_, _, value) in standing.items() if key not in replaced}

    def _make_room(self, connection: sqlite3.Connection, fresh: Mapping[bytes, bytes], *, spare: int) -> list[int]:
        """Take out the keys that were read longest ago until ``fresh`` fits, ``spare`` bytes being free already;
        returns their values' ids, now free."""
        excess = _bytes_used(connection) + sum(map(len, fresh.values())) - spare - self._limit_bytes
        freed: list[int] = []
        while excess > 0 and (oldest := _oldest(connection)):
            connection.executemany("DELETE FROM slot WHERE key = ?", [(key,) for key, _, _ in oldest])
            freed += [id_ for _, id_, _ in oldest]
            excess -= sum(size for _, _, size in oldest)
        return freed

    def _keep_within_limit(self, connection: sqlite3.Connection, fresh: Mapping[bytes, bytes]) -> None:
        """Small values that lie scattered leave few whole pages when they go, so that what fits by its bytes may not
        fit by its pages."""
        while _bytes_used(connection) > self._limit_bytes:
            oldest = [(key, id_) for key, id_, _ in _oldest(connection) if key not in fresh]
            if not oldest:
                return
            connection.executemany("DELETE FROM slot WHERE key = ?", [(key,) for key, _ in oldest])
            connection.executemany("DELETE FROM value WHERE id = ?", [(id_,) for _, id_ in oldest])

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(self._reader.aclose(), self._writer.aclose())


class _Worker:
    """One thread with one connection, opened when first used; a failure to open is tried again at the next use."""

    def __init__(self, name: str, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._connection: sqlite3.Connection | None = None

    async def run(self, work: Callable[..., _T], *args: object) -> _T:
        return await asyncio.wrap_future(self._thread.submit(self._guarded, work, *args))

    def submit(self, work: Callable[..., _T]) -> "Future[_T]":
        """Run ``work`` sometime, for no one who waits: what goes wrong with it shows at the next `run`."""
        return self._thread.submit(self._guarded, work)

    def _guarded(self, work: Callable[..., _T], *args: object) -> _T:
        try:
            if self._connection is None:
                self._connection = _open(self._path)
            return work(self._connection, *args)
        except sqlite3.Error as error:
            raise _store_error(error, self._path) from error

    async def aclose(self) -> None:
        await asyncio.wrap_future(self._thread.submit(self._close))
        self._thread.shutdown()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _store_error(error: sqlite3.Error, path: Path) -> StoreError:
    # https://sqlite.org/rescode.html: the low byte is the primary result code.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        reason = "timeout"
    elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        reason = "corrupt"
    else:
        reason = "refused"
    return StoreError(reason, f"{path}: {error}")


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreError("refused", f"{path.parent}: {error.strerror}") from error
    # isolation_level None: transactions begin where `_transaction` says so and nowhere else.
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # takes effect on a new file only
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and (owner, version) != (_APPLICATION_ID, _SCHEMA_VERSION):
        raise StoreError("corrupt", f"{path}: a database of something else, or of another version; left untouched")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * _PAGE_BYTES}")
    with _transaction(connection):
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in _SCHEMA.strip().splitlines():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A write transaction from its first statement, so that what it reads can't change under it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _select(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, tuple[int, int, bytes]]:
    """key → (id, read_at, value) of the keys that are there."""
    found = {}
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        marks = ",".join("?" * len(chunk))
        query = f"SELECT key, id, read_at, value FROM slot JOIN value USING (id) WHERE key IN ({marks})"  # noqa: S608
        for key, id_, read_at, value in connection.execute(query, chunk):
            # Somebody may have put another type there; as bytes it fails the record's checks.
            found[key] = (id_, read_at, value if isinstance(value, bytes) else b"")
    return found


def _oldest(connection: sqlite3.Connection) -> list[tuple[bytes, int, int]]:
    """(key, id, size) of the share of the entries that were read longest ago; empty when there are none."""
    (entries,) = connection.execute("SELECT count(*) FROM slot").fetchone()
    return connection.execute(
        "SELECT key, id, length(value) FROM (SELECT key, id FROM slot ORDER BY read_at, id LIMIT ?)"
        " JOIN value USING (id)",
        (max(1, entries // _EVICT_SHARE),),
    ).fetchall()


def _bytes_used(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(pages - free) * _PAGE_BYTES
