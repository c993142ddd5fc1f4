"""The log of replaced values in a SQLite file: of earlier versions, bounded, damaged and replaced by a new file."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.cache.sqlite import changes
from proxy.cache.sqlite.store import SQLiteStore
from proxy.cache.store import Changes
from tests.support.dict_store import key_of as key

OpenStore = Callable[[], SQLiteStore]


@pytest.fixture
async def open_store(sqlite_path: Path) -> AsyncIterator[OpenStore]:
    stores: list[SQLiteStore] = []

    def open_() -> SQLiteStore:
        stores.append(SQLiteStore(sqlite_path, limit_bytes=64 * 1024**2))
        return stores[-1]

    yield open_
    for store in stores:
        await store.aclose()


async def replace(store: SQLiteStore, *numbers: int) -> None:
    await store.put_many({key(n): b"x" for n in numbers}, ttl_s=None, overwrite=True)


def execute(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


async def test_a_file_of_an_earlier_version_gets_the_log(sqlite_path: Path, open_store: OpenStore) -> None:
    store = SQLiteStore(sqlite_path, limit_bytes=64 * 1024**2)
    await store.put_many({key(1): b"first"}, ttl_s=None, overwrite=False)
    await store.aclose()
    execute(sqlite_path, "DROP TABLE changes")
    writer, reader = open_store(), open_store()
    assert await reader.changes() == Changes(set())
    await replace(writer, 1)
    assert await reader.changes() == Changes({key(1)})
    assert await reader.get_many([key(1)], timeout_s=5.0) == {key(1): b"x"}


async def test_a_key_that_is_replaced_often_has_one_row(sqlite_path: Path, open_store: OpenStore) -> None:
    writer, reader = open_store(), open_store()
    for _ in range(10):
        await replace(writer, 1, 2)
        assert await reader.changes() == Changes({key(1), key(2)})
    with sqlite3.connect(sqlite_path) as connection:
        assert connection.execute("SELECT count(*) FROM changes").fetchone() == (2,)
    connection.close()


async def test_the_log_is_bounded_and_a_reader_that_was_away_notices(
    sqlite_path: Path, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_ROWS", 20)
    writer, reader = open_store(), open_store()
    await replace(writer, 0)
    assert await reader.changes() == Changes({key(0)})
    for start in range(100, 200, 10):
        await replace(writer, *range(start, start + 10))
    assert await reader.changes() == Changes({key(n) for n in range(180, 200)}, is_complete=False)
    await replace(writer, 180)
    assert await reader.changes() == Changes({key(180)})
    await replace(writer, *range(1000, 1100))  # more than the log has room for
    assert not (await reader.changes()).is_complete
    await replace(writer, 1)
    assert await reader.changes() == Changes({key(1)})


async def test_a_log_that_was_not_written_is_not_read(open_store: OpenStore) -> None:
    writer, reader = open_store(), open_store()
    await replace(writer, 1)
    await reader.changes()
    statements: list[str] = []
    await reader._reader.run(lambda connection: connection.set_trace_callback(statements.append))
    assert await reader.changes() == Changes()
    assert statements == ["PRAGMA data_version"]


async def test_the_log_of_a_new_file_is_read_from_its_beginning(sqlite_path: Path, open_store: OpenStore) -> None:
    writer, reader = open_store(), open_store()
    await replace(writer, 1)
    await replace(writer, 2)
    assert await reader.changes() == Changes({key(1), key(2)})
    for path in sqlite_path.parent.glob(f"{sqlite_path.name}*"):
        path.unlink()  # as an operator may
    await replace(writer, 3)
    await replace(writer, 4)
    assert await reader.changes() == Changes({key(3), key(4)})


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE changes SET id = 'x' WHERE id = 1",
        "UPDATE changes SET id = 9223372036854775807 WHERE id = 1",
        "UPDATE changes SET key = 'x' WHERE id = 1",
        "UPDATE changes SET id = -1 WHERE id = 1",
    ],
)
async def test_a_damaged_log_ends_with_a_log_that_works(sqlite_path: Path, open_store: OpenStore, damage: str) -> None:
    first = SQLiteStore(sqlite_path, limit_bytes=64 * 1024**2)
    await replace(first, 1)
    await replace(first, 2)
    await first.aclose()
    execute(sqlite_path, damage)
    writer, reader = open_store(), open_store()
    await reader.changes()
    await replace(writer, 3)
    await reader.changes()
    await replace(writer, 4)
    assert key(4) in (await reader.changes()).keys
    assert await reader.get_many([key(n) for n in (1, 2, 3, 4)], timeout_s=5.0)
