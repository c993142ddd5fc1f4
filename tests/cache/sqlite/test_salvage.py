"""The readable values of a damaged file."""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from proxy.cache.sqlite.file import FAILURES
from proxy.cache.sqlite.salvage import Salvage
from tests.support.damage import make_key_an_integer
from tests.support.dict_store import key_of as key

COUNT = 400
PAGE_BYTES = 512  # of which a slot's row takes 40
OF_SLOT = b"\x04"  # stands before its key: the type of its time
SLOTS = "CREATE TABLE slot (key BLOB PRIMARY KEY, id INTEGER NOT NULL, read_at INTEGER NOT NULL) WITHOUT ROWID"
VALUES = "CREATE TABLE value (id INTEGER PRIMARY KEY, value BLOB NOT NULL, key BLOB)"
EARLIER_VALUES = "CREATE TABLE value (id INTEGER PRIMARY KEY, value BLOB NOT NULL)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.sqlite3"


def value(number: int) -> bytes:
    return b"value %d" % number


def values(numbers: Iterable[int]) -> dict[bytes, bytes]:
    return {key(number): value(number) for number in numbers}


def fill(path: Path, *statements: str, schema: str = VALUES, slots: int = COUNT) -> None:
    """A file of an entry for each of the first numbers from 1, changed by ``statements``."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute(SLOTS)
        connection.execute(schema)
        for number in range(1, slots + 1):
            connection.execute("INSERT INTO slot VALUES (?, ?, ?)", (key(number), number, 1_800_000_000))
            connection.execute("INSERT INTO value (id, value) VALUES (?, ?)", (number, value(number)))
            if schema is VALUES:
                connection.execute("UPDATE value SET key = ? WHERE id = ?", (key(number), number))
        for statement in statements:
            connection.execute(statement)


def salvaged(path: Path) -> Mapping[bytes, bytes]:
    with closing(Salvage(path)) as salvage:
        found: dict[bytes, bytes] = {}
        chunks = 0
        while chunk := salvage.chunk():
            assert not found.keys() & chunk.keys()
            found |= chunk
            chunks += 1
        assert salvage.values == len(found)
        assert chunks <= COUNT
        return found


def test_a_readable_file_is_read_in_chunks(path: Path) -> None:
    fill(path, slots=130)
    with closing(Salvage(path)) as salvage:
        assert salvage.aside == path
        assert [salvage.chunk() for _ in range(5)] == [
            values(range(1, 65)), values(range(65, 129)), values(range(129, 131)), {}, {}
        ]  # fmt: skip
        assert salvage.values == 130


def test_the_file_stays_as_it_is(path: Path) -> None:
    fill(path, slots=3)
    before = path.read_bytes()
    with closing(Salvage(path)) as salvage, pytest.raises(sqlite3.OperationalError, match="readonly"):
        salvage._connection.execute("DELETE FROM slot")
    assert path.read_bytes() == before


def test_a_value_has_to_be_its_keys_own(path: Path) -> None:
    fill(path, "UPDATE slot SET id = 2 WHERE id = 1", "DELETE FROM value WHERE id = 3", slots=4)
    assert salvaged(path) == values([2, 4])


def test_a_value_without_a_key_is_that_of_its_slot(path: Path) -> None:
    fill(path, "UPDATE value SET key = NULL WHERE id = 1", slots=2)
    assert salvaged(path) == values([1, 2])


def test_files_of_earlier_versions_have_no_keys_with_their_values(path: Path) -> None:
    fill(path, schema=EARLIER_VALUES, slots=2)
    assert salvaged(path) == values([1, 2])


def test_fields_of_another_type_or_length_are_left_out(path: Path) -> None:
    fill(
        path,
        "UPDATE value SET value = 5 WHERE id = 1",
        "UPDATE slot SET key = x'0102' WHERE id = 2",
        "UPDATE value SET key = x'0102' WHERE id = 2",
        "UPDATE value SET value = '\xe9' WHERE id = 3",  # text that is no blob, and need not be UTF-8
        slots=4,
    )
    assert salvaged(path) == values([4]) | {key(3): "\xe9".encode()}


def test_a_chunk_without_any_value_is_not_the_end(path: Path) -> None:
    fill(path, "DELETE FROM value WHERE id <= 200")
    assert salvaged(path) == values(range(201, COUNT + 1))


@pytest.mark.parametrize("number", [1, 60, 64, 65, 200, COUNT])
def test_all_but_a_damaged_page_of_slots_is_read(path: Path, number: int) -> None:
    fill(path)
    content = path.read_bytes()
    start = content.index(OF_SLOT + key(number)) // PAGE_BYTES * PAGE_BYTES
    lost = {n for n in range(1, COUNT + 1) if OF_SLOT + key(n) in content[start : start + PAGE_BYTES]}
    assert number in lost
    path.write_bytes(content[:start] + b"\xff" * PAGE_BYTES + content[start + PAGE_BYTES :])
    assert salvaged(path) == values(n for n in range(1, COUNT + 1) if n not in lost)


@pytest.mark.parametrize("number", [1, 2, 64, 65, 128, COUNT])
def test_a_key_that_is_no_blob_is_left_out(path: Path, number: int) -> None:
    fill(path, "UPDATE value SET key = NULL")
    make_key_an_integer(path, key(number))
    assert salvaged(path) == values(n for n in range(1, COUNT + 1) if n != number)


@pytest.mark.parametrize("written", [bytes(32), b"\xff" * 32])
@pytest.mark.parametrize("number", [1, 63, 64, 65, COUNT])
def test_keys_that_are_out_of_order_hide_no_others(path: Path, written: bytes, number: int) -> None:
    fill(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(OF_SLOT + key(number), OF_SLOT + written))
    assert salvaged(path) == values(n for n in range(1, COUNT + 1) if n != number)


def test_a_damaged_key_before_a_damaged_page_hides_only_its_neighbor(path: Path) -> None:
    fill(path)
    content = path.read_bytes()
    start = content.index(OF_SLOT + key(200)) // PAGE_BYTES * PAGE_BYTES
    lost = [n for n in range(1, COUNT + 1) if OF_SLOT + key(n) in content[start : start + PAGE_BYTES]]
    content = content[:start] + b"\xff" * PAGE_BYTES + content[start + PAGE_BYTES :]
    damaged = lost[0] - 2  # the last slot that Python's module returns
    path.write_bytes(content.replace(OF_SLOT + key(damaged), OF_SLOT + key(300)))
    lost += [damaged, damaged + 1]
    assert salvaged(path) == values(n for n in range(1, COUNT + 1) if n not in lost)


def test_a_file_without_anything_readable_is_reported_and_closed(path: Path) -> None:
    path.write_bytes(b"\xff" * 4096)
    with pytest.raises(FAILURES):
        Salvage(path)
    path.unlink()
