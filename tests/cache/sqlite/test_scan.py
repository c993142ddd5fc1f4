"""Pages of a SQLite file: also of files of earlier versions, and of damaged ones."""

import sqlite3
from pathlib import Path

import pytest

from proxy.cache.sqlite import scan
from proxy.cache.sqlite.store import SQLiteStore
from proxy.errors import StoreError
from tests.cache.test_store import scanned
from tests.support.damage import make_key_an_integer
from tests.support.dict_store import key_of as key

VALUES = {key(n): b"%d" % n for n in range(700)}


@pytest.fixture
async def store(sqlite_path: Path) -> SQLiteStore:
    store = SQLiteStore(sqlite_path, limit_bytes=64 * 1024**2)
    await store.put_many(VALUES, ttl_s=None, overwrite=False)
    return store


def execute(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE value SET key = NULL WHERE id % 3 = 0",
        "UPDATE value SET key = NULL WHERE id < 10",
        "UPDATE value SET key = NULL WHERE id > 690",
        "UPDATE value SET key = NULL",
    ],
)
async def test_values_without_a_key_are_found_by_their_slots(
    store: SQLiteStore, sqlite_path: Path, statement: str
) -> None:
    execute(sqlite_path, statement)
    assert await scanned(store) == VALUES
    await store.aclose()


async def test_what_no_slot_refers_to_is_not_there(store: SQLiteStore, sqlite_path: Path) -> None:
    execute(
        sqlite_path,
        "DELETE FROM slot WHERE id = 5",
        "UPDATE slot SET id = 7 WHERE id = 6",
        "UPDATE value SET value = 5 WHERE id = 8",
    )
    gone = {key(4), key(5)}
    expected = {its: value for its, value in VALUES.items() if its not in gone} | {key(7): b""}
    assert await scanned(store) == expected
    await store.aclose()


async def test_a_damaged_file_is_reported_and_left_as_it_is(store: SQLiteStore, sqlite_path: Path) -> None:
    page = await store.scan()
    execute(sqlite_path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with sqlite_path.open("r+b") as file:
        file.seek(32 * 1024)
        file.write(b"\xff" * (sqlite_path.stat().st_size - 32 * 1024))
    damaged = sqlite_path.read_bytes()
    fresh = SQLiteStore(sqlite_path, limit_bytes=64 * 1024**2)
    with pytest.raises(StoreError, match=rf"{sqlite_path}: the file can't be read on; Page \d") as failed:
        await fresh.scan(page.cursor or b"")
    assert failed.value.reason == "corrupt"
    assert sqlite_path.read_bytes() == damaged
    assert [path.name for path in sqlite_path.parent.iterdir() if "damaged" in path.name] == []
    for each in (store, fresh):
        await each.aclose()


@pytest.mark.parametrize("number", [0, 100, 255, 256, 699])
async def test_a_damaged_key_does_not_end_a_scan_by_the_slots(
    store: SQLiteStore, sqlite_path: Path, number: int
) -> None:
    execute(sqlite_path, "UPDATE value SET key = NULL")
    await store.aclose()
    execute(sqlite_path, "PRAGMA wal_checkpoint(TRUNCATE)")
    make_key_an_integer(sqlite_path, key(number))
    store = SQLiteStore(sqlite_path, limit_bytes=64 * 1024**2)
    assert await scanned(store) == {its: value for its, value in VALUES.items() if its != key(number)}
    await store.aclose()


@pytest.mark.parametrize("statement", ["UPDATE value SET key = NULL", "UPDATE value SET value = value"])
async def test_a_scan_of_rows_that_are_out_of_order_ends(
    store: SQLiteStore, statement: str, sqlite_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(sqlite_path, statement)
    queries = scan._VALUES, scan._KEYLESS
    monkeypatch.setattr(scan, "_VALUES", queries[0].replace("value.id > ?", "value.id <> ?"))
    monkeypatch.setattr(scan, "_KEYLESS", queries[1].replace("slot.key > ?", "slot.key <> ?"))
    with pytest.raises(StoreError, match="out of order"):
        await scanned(store)
    await store.aclose()
