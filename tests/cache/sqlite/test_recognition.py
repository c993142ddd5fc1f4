"""What was a store is told from another program's file, which nobody changes."""

import os
import random
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.cache.sqlite import file, recognition
from proxy.cache.sqlite.recognition import PAGE_BYTES, other_than_store
from proxy.cache.sqlite.store import SQLiteStore
from proxy.errors import StoreError

MIB = 1024**2
KEY = b"k" * 32


async def use(path: Path, *, closes: bool = True) -> SQLiteStore:
    """Write one value."""
    store = SQLiteStore(path, limit_bytes=64 * MIB)
    try:
        await store.put_many({KEY: b"value"}, ttl_s=None, overwrite=False)
    finally:
        if closes:
            await store.aclose()
    return store


def photo(path: Path) -> None:
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + random.Random(1).randbytes(100_000))


def archive_of_a_store(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        tar.add(path.with_name("other.sqlite3"), "cache.sqlite3")


def dump_of_a_store(path: Path) -> None:
    connection = sqlite3.connect(path.with_name("other.sqlite3"))
    path.write_text("\n".join(connection.iterdump()))
    connection.close()


def database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE customers (name)")
    connection.commit()
    connection.close()


def damaged_database(path: Path) -> None:
    database(path)
    with path.open("r+b") as its:
        its.seek(100)
        its.write(b"\xff" * 400)


def database_without_tables(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA application_id = 7")
    connection.close()


def database_in_its_log(path: Path) -> None:
    """Of a program that was killed: the file has an empty page, and the log has the tables."""
    live = path.with_name("live")
    connection = sqlite3.connect(live, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE customers (name)")
    shutil.copy(live, path)
    shutil.copy(f"{live}-wal", f"{path}-wal")
    connection.close()


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "photo": (photo, "a file of something else"),
    "short": (lambda path: path.write_bytes(b"\0"), "a file of something else"),
    "zeros": (lambda path: path.write_bytes(bytes(PAGE_BYTES)), "a file of something else"),
    "archive": (archive_of_a_store, "a file of something else"),
    "dump": (dump_of_a_store, "a file of text"),
    "text": (lambda path: path.write_text("é" * 40_000), "a file of text"),
    "database": (database, "the database of something else"),
    "damaged database": (damaged_database, "the database of something else"),
    "database without tables": (database_without_tables, "the database of something else"),
    "database in its log": (database_in_its_log, "the database of something else"),
}


@pytest.mark.parametrize("which", OTHERS)
async def test_another_file_is_recognized_and_left_as_it_is(sqlite_path: Path, which: str) -> None:
    await use(sqlite_path.with_name("other.sqlite3"))
    make, what = OTHERS[which]
    make(sqlite_path)
    files = {path: path.read_bytes() for path in sqlite_path.parent.iterdir()}
    assert other_than_store(sqlite_path) == what
    store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB)
    for _ in range(2):
        with pytest.raises(StoreError, match=f"{what} and no store; left unchanged"):
            await store.get_many([KEY], timeout_s=5.0)
        with pytest.raises(StoreError, match=f"{what} and no store; left unchanged"):
            await store.put_many({KEY: b"value"}, ttl_s=None, overwrite=False)
    await store.aclose()
    assert {path: path.read_bytes() for path in sqlite_path.parent.iterdir()} == files


def test_a_folder_and_a_pipe_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    assert other_than_store(tmp_path / "pipe") == "no regular file"
    assert other_than_store(tmp_path) == "a folder"


def test_nothing_and_an_empty_file_may_become_a_store(sqlite_path: Path) -> None:
    assert other_than_store(sqlite_path) is None
    sqlite_path.touch()
    assert other_than_store(sqlite_path) is None


async def test_a_store_of_a_process_that_was_killed_is_recognized_by_its_log(sqlite_path: Path, tmp_path: Path) -> None:
    """Until the log is folded back for the first time, the file itself has no table."""
    store = await use(sqlite_path, closes=False)
    killed = tmp_path / "killed"
    shutil.copy(sqlite_path, killed)
    assert recognition._is_ours(killed.read_bytes()[:PAGE_BYTES]) is False
    shutil.copy(f"{sqlite_path}-wal", f"{killed}-wal")
    await store.aclose()
    assert other_than_store(killed) is None
    killed.write_bytes(bytes(PAGE_BYTES))
    assert other_than_store(killed) is None


async def test_a_new_file_of_a_process_that_was_killed_before_it_made_tables_is_used(sqlite_path: Path) -> None:
    connection = sqlite3.connect(sqlite_path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert sqlite_path.stat().st_size > 0
    assert other_than_store(sqlite_path) is None
    await use(sqlite_path)


async def test_a_damaged_first_page_is_recognized_by_either_of_its_ends(sqlite_path: Path) -> None:
    await use(sqlite_path)
    whole = sqlite_path.read_bytes()
    for damaged in (
        bytes(68) + whole[68:72],
        whole[:100] + bytes(PAGE_BYTES - 100),
        bytes(4096) + whole[4096:],
        whole[:68] + b"\0\0\0\1" + whole[72:],
    ):
        sqlite_path.write_bytes(damaged)
        assert other_than_store(sqlite_path) is None


@pytest.mark.parametrize("log", [b"", b"\x37\x7f\x06", bytes(32), b"\0" * 8 + b"\xff" * 30, b"\0" * 10 + b"\2" * 99])
def test_a_damaged_log_proves_nothing(sqlite_path: Path, log: bytes) -> None:
    photo(sqlite_path)
    Path(f"{sqlite_path}-wal").write_bytes(log)
    assert other_than_store(sqlite_path) == "a file of something else"


def test_the_recognized_text_is_that_of_the_schema() -> None:
    assert file._create("slot").encode() == recognition._END_OF_FIRST_PAGE
