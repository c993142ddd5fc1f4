"""The SQLite store's file: opened, and set aside when it is damaged.

A damaged file is renamed and kept, and a new one replaces it, also while the proxy runs. Processes share it, so it is
opened and renamed under a lock on its folder, and before each use a process checks that it has the file at that path.

Renaming a database that is in use is safe if its log and shared memory are renamed with it: SQLite checks whether the
file has moved before it checkpoints or deletes a log by its name (`SQLITE_FCNTL_HAS_MOVED`).
"""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from proxy.cache.sqlite import disk, recognition
from proxy.cache.sqlite.recognition import APPLICATION_ID, SLOT_COLUMNS, other_than_store
from proxy.errors import StoreError

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_SCHEMA_VERSION = 1
PAGE_BYTES = recognition.PAGE_BYTES
_WAL_PAGES = 256  # 8 MiB, the most the write-ahead log grows before it is folded back in
_BUSY_TIMEOUT_S = 5.0
_CACHE_KIB = 2000
# With the open file, with the file reopened, and with a new file.
_ATTEMPTS = 3

# A slot refers to its value by ``id``. The value has the key too, to detect a slot that refers to another key's value;
# it is NULL in files of earlier versions.
_TABLES = {
    "slot": SLOT_COLUMNS,
    "value": "id INTEGER PRIMARY KEY, value BLOB NOT NULL, key BLOB",
    # The processes that use the file, and their size limits.
    "proxy": "id BLOB PRIMARY KEY, limit_bytes INTEGER NOT NULL, used_at INTEGER NOT NULL",
    # The keys whose values were replaced lately.
    "changes": "key BLOB PRIMARY KEY, id INTEGER NOT NULL",
    # Counters that all processes add to.
    "counter": "name TEXT PRIMARY KEY, amount INTEGER NOT NULL, expires_at INTEGER NOT NULL",
}
_LATER_TABLES = ("proxy", "changes", "counter")  # which files of earlier versions do not have
_WITHOUT_ROWID = {"slot", "proxy", "changes", "counter"}

# https://sqlite.org/rescode.html. The statements are valid, so these errors come from the file's content.
_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG,
    }
)  # fmt: skip
_CONTENTION = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

# `UnicodeDecodeError` comes from a message of SQLite's that quotes the file's content.
FAILURES = (sqlite3.Error, UnicodeDecodeError)


class DamagedFile(sqlite3.DatabaseError):
    """The file's content contradicts itself, though SQLite can read it."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


class DatabaseThread:
    """One thread with one connection, opened at the first use. If opening fails, the next use tries again.

    The thread calls ``on_set_aside`` with the new path of a file that was set aside. Without ``replaces``, no file is.
    The threads of one store share ``recognized``, the files that are known to be stores.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        on_set_aside: Callable[[Path], object],
        recognized: set[disk.Identity] | None = None,
        replaces: bool = True,
    ) -> None:
        self._path, self._on_set_aside = path, on_set_aside
        self._recognized = set() if recognized is None else recognized
        self._attempts = _ATTEMPTS if replaces else _ATTEMPTS - 1
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._connection: sqlite3.Connection | None = None
        self._is_closed = False
        self._identity: disk.Identity | None = None  # of the file that is open, or could not be opened

    async def run(self, work: Callable[..., _T], *args: object) -> _T:
        """Raises `StoreError`."""
        return await asyncio.wrap_future(self._thread.submit(self._guarded, work, *args))

    def submit(self, work: Callable[..., _T], *args: object) -> "Future[_T]":
        """Run ``work`` soon. Its failure is not reported: if it lasts, the next `run` raises it."""
        return self._thread.submit(self._guarded, work, *args)

    def _guarded(self, work: Callable[..., _T], *args: object) -> _T:
        """Run ``work``. If the file's content makes it fail, run it again with the file reopened, and a third time with
        a new file."""
        attempts = 0
        while True:
            try:
                return work(self._opened(), *args)
            except FAILURES as error:
                attempts += 1
                if _code(error) not in _CONTENTION:
                    self._close()
                if attempts == self._attempts or not _is_damage(error, self._path):
                    raise _store_error(error, self._path) from error
                if attempts == _ATTEMPTS - 1:
                    self._set_aside(error)

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None and disk.identity(self._path) != self._identity:
            self._close()  # another process or thread has set it aside, or an operator has deleted it
        if self._is_closed:
            raise StoreError("refused", f"{self._path}: closed")
        if self._connection is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise StoreError("refused", f"{self._path.parent}: {error.strerror}") from error
            with disk.locked(self._path.parent):
                disk.create_private(self._path)
                self._recognize()
                # isolation_level None: only `transaction` begins transactions.
                connection = sqlite3.connect(
                    self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
                )
                try:
                    self._identity = disk.identity(self._path)
                    _prepare(connection, self._path)
                except BaseException:
                    connection.close()
                    raise
            self._connection = connection
        return self._connection

    def _recognize(self) -> None:
        """Raise `StoreError` if the file is another program's. The lock on the folder is held.

        A file is looked at once, before a thread has it open. Damage that comes later does not make it another's.
        """
        identity = disk.identity(self._path)
        if identity is None or identity in self._recognized:
            return
        if other := other_than_store(self._path):
            raise StoreError("corrupt", f"{self._path}: {other} and no store; left unchanged")
        self._recognized.add(identity)

    def _set_aside(self, error: Exception) -> None:
        try:
            with disk.locked(self._path.parent):
                if disk.identity(self._path) != self._identity:
                    return  # another process or thread has set it aside
                aside = disk.set_aside(self._path)
        except OSError as refusal:
            message = f"{self._path} is damaged ({error}), and can't be renamed: {refusal.strerror}"
            raise StoreError("corrupt", message) from error
        _log.warning(
            "%s is damaged (%s): renamed to %s and replaced by a new file; delete the renamed file when you like",
            self._path,
            error,
            aside.name,
        )
        self._on_set_aside(aside)

    async def aclose(self) -> None:
        await asyncio.wrap_future(self._thread.submit(self._end))
        self._thread.shutdown()

    def _end(self) -> None:
        self._is_closed = True  # work that is submitted later must not open the file again
        self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A write transaction from its first statement, so that no other process changes the rows that it reads."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite itself has rolled back after some errors. A failure to do so ends with the connection.
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.text_factory = bytes  # damaged text must not fail a query
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # takes effect on a new file only
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")  # the file must not set it
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    missing = _missing(connection, path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * PAGE_BYTES}")
    if missing:
        with transaction(connection):
            for statement in missing:
                connection.execute(statement)


def _missing(connection: sqlite3.Connection, path: Path) -> list[str]:
    """The statements that create the schema in an empty file, or update that of an earlier version.

    Raises `StoreError` if it is another program's database, and `DamagedFile` if it is ours and has another schema.
    """
    columns = {table: _columns(connection, table) for table in _TABLES}
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    claims = [f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {_SCHEMA_VERSION}"]
    if not tables and pages <= 1:
        return [*map(_create, _TABLES), *claims]
    is_slot = columns["slot"] == _column_names("slot")
    is_value = columns["value"] in (_column_names("value"), _column_names("value")[:2])
    is_owned, is_known = owner == APPLICATION_ID, version == _SCHEMA_VERSION
    # A file is ours if either its tables or its header say so: the other may be damaged.
    if not (is_slot and is_value):
        if is_owned and is_known:
            raise DamagedFile("its tables have other columns")
        raise StoreError("corrupt", f"{path}: the database of something else, or of another version; left unchanged")
    missing = []
    for table in _LATER_TABLES:
        if columns[table] != _column_names(table):
            missing += [f"DROP TABLE IF EXISTS {table}", _create(table)]
    if columns["value"] != _column_names("value"):
        missing.append("ALTER TABLE value ADD COLUMN key BLOB")
    return missing if is_owned and is_known else [*missing, *claims]


def _columns(connection: sqlite3.Connection, table: str) -> list[bytes]:
    return [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]


def _column_names(table: str) -> list[bytes]:
    return [column.split()[0].encode() for column in _TABLES[table].split(", ")]


def _create(table: str) -> str:
    return f"CREATE TABLE {table} ({_TABLES[table]}){' WITHOUT ROWID' if table in _WITHOUT_ROWID else ''}"


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary result code


def _is_damage(error: Exception, path: Path) -> bool:
    """Whether the file's content caused the error, and not a full disk, missing permission or a lock."""
    if _code(error) == sqlite3.SQLITE_READONLY:
        # A damaged header may have a version that makes a writable file read-only.
        return all(os.access(writable, os.W_OK) for writable in (path, path.parent))
    return _code(error) in _DAMAGE or isinstance(error, UnicodeDecodeError)


def _store_error(error: Exception, path: Path) -> StoreError:
    if _code(error) in _CONTENTION:
        reason = "timeout"
    elif _is_damage(error, path):
        reason = "corrupt"
    else:
        reason = "refused"
    # SQLite says only that it can't open the file, or that it is read-only.
    there = (what for what in (path.parent, path) if reason == "refused" and disk.identity(what) is not None)
    unwritable = next((what for what in there if not os.access(what, os.W_OK)), None)
    hint = "" if unwritable is None else f"; {unwritable} can't be written"
    return StoreError(reason, f"{path}: {error}{hint}")
