import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.cache.sqlite.store import SQLiteStore
from proxy.errors import StoreError

VALUE = b"v" * 6300  # a 1536-d record
MIB = 1024**2


def key(number: int) -> bytes:
    return number.to_bytes(32, "big", signed=True)


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def file_bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in path.parent.iterdir())


async def put(store: SQLiteStore, numbers: range) -> None:
    await store.put_many({key(n): VALUE for n in numbers}, ttl_s=None, overwrite=False)


async def test_the_file_stays_within_its_limit_and_keeps_the_newest(sqlite_path: Path) -> None:
    clock = Clock()
    store = SQLiteStore(sqlite_path, limit_bytes=16 * MIB, clock=clock)
    for start in range(0, 12_000, 100):
        clock.now += 100
        await put(store, range(start, start + 100))
        assert sqlite_path.stat().st_size <= 16 * MIB + 4 * 32 * 1024
    kept = await store.get_many([key(n) for n in range(12_000)], timeout_s=5.0)
    await store.aclose()
    batches = sorted(int.from_bytes(kept_key, "big") // 100 for kept_key in kept)
    # Entries of one batch are equally old; of older batches none is left, of newer ones none is missing.
    assert all(batches.count(batch) == 100 for batch in range(batches[0] + 1, 120))
    assert len(kept) * len(VALUE) > 0.85 * 16 * MIB


async def test_eviction_is_by_least_recent_read(sqlite_path: Path) -> None:
    clock = Clock()
    store = SQLiteStore(sqlite_path, limit_bytes=16 * MIB, clock=clock)
    await put(store, range(100))
    for start in range(100, 6000, 100):
        clock.now += 100
        assert len(await store.get_many([key(n) for n in range(100)], timeout_s=5.0)) == 100
        await put(store, range(start, start + 100))
    await store.aclose()


async def test_overwriting_does_not_make_the_file_grow(sqlite_path: Path) -> None:
    store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB)
    await put(store, range(500))
    before = sqlite_path.stat().st_size
    for _ in range(20):
        await store.put_many({key(n): VALUE[::-1] for n in range(500)}, ttl_s=None, overwrite=True)
    await store.aclose()
    assert sqlite_path.stat().st_size <= max(before, 500 * 7000)


@pytest.mark.parametrize("turns_at", [None, 0, 50, 700, 1050, 1950])
async def test_overwriting_with_larger_values_makes_room_for_them(sqlite_path: Path, turns_at: int | None) -> None:
    """When the clock turns between them, what is oldest lies scattered over the pages."""
    now = 1000
    store = SQLiteStore(sqlite_path, limit_bytes=16 * MIB, clock=lambda: now)
    await store.put_many({key(n): b"s" * 600 for n in range(2000)}, ttl_s=None, overwrite=False)
    for start in range(0, 2000, 50):
        now += start == turns_at
        large = {key(n): b"l" * 30_000 for n in range(start, start + 50)}
        await store.put_many(large, ttl_s=None, overwrite=True)
        assert await store.get_many(list(large), timeout_s=5.0) == large
    await store.aclose()
    # What is over is what was written at last: pages are freed after it.
    assert sqlite_path.stat().st_size <= 16 * MIB + 50 * 32 * 1024 + MIB


async def test_an_item_takes_less_than_7400_bytes_of_the_file(sqlite_path: Path) -> None:
    store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB)
    for start in range(0, 3000, 64):
        await put(store, range(start, start + 64))
    await store.aclose()
    assert file_bytes(sqlite_path) / 3008 <= 7400


# --- several processes with several limits


async def fill_by_the_larger(path: Path, clock: Clock) -> SQLiteStore:
    """A store with 1000 entries, for which the limit of another is too small."""
    larger = SQLiteStore(path, limit_bytes=16 * MIB, clock=clock)
    await put(larger, range(1000))
    return larger


async def entries(store: SQLiteStore) -> int:
    return len(await store.get_many([key(n) for n in range(1000)], timeout_s=60.0))


async def test_the_larger_limit_applies_while_its_process_runs(
    sqlite_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    larger = await fill_by_the_larger(sqlite_path, clock)
    smaller = SQLiteStore(sqlite_path, limit_bytes=2 * MIB, clock=clock)
    for start in range(10_000, 10_200, 20):
        await put(smaller, range(start, start + 20))
    assert await entries(larger) == 1000
    assert caplog.text.count(f"larger --store-limit, {16 * MIB} bytes") == 1
    await larger.aclose()
    clock.now += 100
    await put(smaller, range(20_000, 20_100))
    assert sqlite_path.stat().st_size > 2 * MIB  # pages are free, but not given back
    assert await entries(smaller) < 400
    await smaller.aclose()


async def test_a_limit_applies_while_its_process_only_reads(sqlite_path: Path) -> None:
    clock = Clock()
    await (await fill_by_the_larger(sqlite_path, clock)).aclose()
    reader = SQLiteStore(sqlite_path, limit_bytes=16 * MIB, clock=clock)
    await reader.get_many([key(1)], timeout_s=60.0)
    assert reader._touching is not None
    await asyncio.wrap_future(reader._touching)
    smaller = SQLiteStore(sqlite_path, limit_bytes=2 * MIB, clock=clock)
    await put(smaller, range(10_000, 10_100))
    assert await entries(reader) == 1000
    await reader.aclose()
    await smaller.aclose()


async def test_the_limit_of_a_killed_process_applies_for_a_day(sqlite_path: Path) -> None:
    clock = Clock()
    killed = await fill_by_the_larger(sqlite_path, clock)
    killed._limit.registered_at_s = float("-inf")  # it does not sign out
    await killed.aclose()
    smaller = SQLiteStore(sqlite_path, limit_bytes=2 * MIB, clock=clock)
    await put(smaller, range(10_000, 10_020))
    assert await entries(smaller) == 1000
    clock.now += 25 * 3600
    await put(smaller, range(20_000, 20_020))
    assert await entries(smaller) < 400
    await smaller.aclose()


# --- kills, and other programs' files

KILLED_WRITER = """
import asyncio, sys
from pathlib import Path
from proxy.cache.sqlite.store import SQLiteStore

async def main():
    store = SQLiteStore(Path(sys.argv[1]), limit_bytes=64 * 1024**2)
    for n in range(10**9):
        await store.put_many({n.to_bytes(32, "big"): n.to_bytes(4, "big") * 1500}, ttl_s=None, overwrite=False)
        print(n, flush=True)

asyncio.run(main())
"""


async def test_stored_values_survive_a_kill(sqlite_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", KILLED_WRITER, str(sqlite_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    done = [int(writer.stdout.readline()) for _ in range(300)]
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB)
    found = await store.get_many([key(n) for n in done], timeout_s=5.0)
    await put(store, range(10_000, 10_010))
    await store.aclose()
    assert found == {key(n): n.to_bytes(4, "big") * 1500 for n in done}


OBEDIENT_WRITER = """
import asyncio, sys
from pathlib import Path
from proxy.cache.sqlite.store import SQLiteStore

async def main():
    store = SQLiteStore(Path(sys.argv[1]), limit_bytes=64 * 1024**2)
    for line in sys.stdin:
        n = int(line)
        await store.put_many({n.to_bytes(32, "big"): n.to_bytes(4, "big") * 1500}, ttl_s=None, overwrite=False)
        print(n, flush=True)

asyncio.run(main())
"""


async def test_a_process_uses_the_new_file_when_another_has_set_the_old_one_aside(sqlite_path: Path) -> None:
    command = [sys.executable, "-c", OBEDIENT_WRITER, str(sqlite_path)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdin is not None
    assert writer.stdout is not None

    def write(numbers: range) -> None:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for n in numbers:
            writer.stdin.write(b"%d\n" % n)
            writer.stdin.flush()
            assert int(writer.stdout.readline()) == n

    write(range(50))
    connection = sqlite3.connect(sqlite_path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else the log may have the first page, too
    connection.close()
    with sqlite_path.open("r+b") as file:
        file.write(bytes(100))
    store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB)
    await put(store, range(-100, 0))
    write(range(50, 150))
    found = await store.get_many([key(n) for n in range(-100, 150)], timeout_s=60.0)
    writer.stdin.close()
    writer.wait()  # the last connection to a file deletes its log
    writer.stdout.close()
    await put(store, range(-200, -100))
    assert len(await store.get_many([key(n) for n in range(-200, 0)], timeout_s=60.0)) == 200
    await store.aclose()
    assert set(found) == {key(n) for n in range(-100, 150) if not 0 <= n < 50}
    with sqlite3.connect(sqlite_path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


async def test_a_foreign_database_is_left_unchanged(sqlite_path: Path) -> None:
    with sqlite3.connect(sqlite_path) as connection:
        connection.execute("CREATE TABLE customers (name)")
    connection.close()
    before = sqlite_path.read_bytes()
    store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB)
    with pytest.raises(StoreError, match="something else"):
        await put(store, range(1))
    with pytest.raises(StoreError, match="something else"):
        await store.get_many([key(1)], timeout_s=5.0)
    await store.aclose()
    assert sqlite_path.read_bytes() == before


@pytest.mark.parametrize("text", ["precious notes " * 10, "é" * 40_000], ids=["short", "long"])
async def test_a_file_of_text_is_left_where_it_is(sqlite_path: Path, text: str) -> None:
    """An operator has given the path of another file, such as that of the client keys."""
    sqlite_path.write_text("a" + text, encoding="utf-8")
    store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB)
    for _ in range(2):
        with pytest.raises(StoreError, match="a file of text and no store; left unchanged"):
            await store.get_many([key(1)], timeout_s=5.0)
    with pytest.raises(StoreError, match="a file of text and no store; left unchanged"):
        await put(store, range(1))
    await store.aclose()
    assert sqlite_path.read_text(encoding="utf-8") == "a" + text
    assert list(sqlite_path.parent.iterdir()) == [sqlite_path]


async def test_a_directory_that_cannot_be_created_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = SQLiteStore(tmp_path / "file" / "cache.sqlite3", limit_bytes=64 * MIB)
    with pytest.raises(StoreError) as refused:
        await store.get_many([key(1)], timeout_s=5.0)
    await store.aclose()
    assert refused.value.reason == "refused"


@pytest.mark.parametrize("which", ["folder", "file"])
async def test_what_can_not_be_written_is_named(sqlite_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """A read-only file system, or another user's folder: SQLite says only that it can't open the file."""
    sqlite_path.touch()
    denied = sqlite_path.parent if which == "folder" else sqlite_path

    def connect(*_: object, **__: object) -> sqlite3.Connection:
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    monkeypatch.setattr("proxy.cache.sqlite.file.sqlite3.connect", connect)
    monkeypatch.setattr("proxy.cache.sqlite.file.os.access", lambda path, _: path != denied)
    store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB)
    with pytest.raises(StoreError, match=f"unable to open database file; {re.escape(str(denied))} can't be written$"):
        await store.get_many([key(1)], timeout_s=5.0)
    await store.aclose()


async def test_opening_is_tried_again_after_a_failure(sqlite_path: Path) -> None:
    sqlite_path.mkdir()
    store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB)
    with pytest.raises(StoreError):
        await store.get_many([key(1)], timeout_s=5.0)
    sqlite_path.rmdir()
    await put(store, range(3))
    assert len(await store.get_many([key(n) for n in range(3)], timeout_s=5.0)) == 3
    await store.aclose()


@pytest.mark.parametrize("mask", [0o000, 0o022])
async def test_a_new_file_is_its_owners_alone_and_an_old_one_keeps_its_mode(sqlite_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        for mode in (0o600, 0o640):
            store = SQLiteStore(sqlite_path, limit_bytes=64 * 1024**2)
            await store.put_many({key(1): b"value"}, ttl_s=None, overwrite=False)
            modes = {path.name: path.stat().st_mode & 0o777 for path in sqlite_path.parent.glob(f"{sqlite_path.name}*")}
            assert modes == {f"{sqlite_path.name}{end}": mode for end in ("", "-wal", "-shm")}
            await store.aclose()
            sqlite_path.chmod(0o640)  # an operator shares it
    finally:
        os.umask(before)
