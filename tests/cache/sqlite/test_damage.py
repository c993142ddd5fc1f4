"""Damaged files: readable values stay, damaged ones are replaced, and an unusable file is set aside."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from proxy.cache.entry import Entry
from proxy.cache.sqlite.recognition import other_than_store
from proxy.cache.sqlite.store import SQLiteStore
from proxy.errors import StoreError
from proxy.protocol import records, vectors
from proxy.protocol.records import Record
from proxy.telemetry.metrics import Metrics
from tests.cache.sqlite.test_store import KILLED_WRITER, MIB
from tests.support.dict_store import Clock, look_up, make_cache, record, served, written
from tests.support.profiles import IS_SLOW_PROFILE

PAGE = 32 * 1024
KEYS = [number.to_bytes(2, "big") * 16 for number in range(1, 301)]
A, B, C = KEYS[:3]
EVERYTHING = slice(None)


def value(key: bytes) -> bytes:
    """As long as a record of 512 dimensions."""
    return key * 66


@pytest.fixture
async def open_store(sqlite_path: Path) -> AsyncIterator[Callable[..., SQLiteStore]]:
    """Opens the same file as often as it is called, as several processes would."""
    stores: list[SQLiteStore] = []

    def open_(**options: Any) -> SQLiteStore:
        stores.append(SQLiteStore(sqlite_path, **{"limit_bytes": 64 * MIB, **options}))
        return stores[-1]

    yield open_
    for store in stores:
        if not store._closed:
            await store.aclose()


@pytest.fixture
async def filled(sqlite_path: Path) -> Path:
    """The path of a file with all of ``KEYS``, which nobody uses."""
    store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB)
    await store.put_many({key: value(key) for key in KEYS}, ttl_s=None, overwrite=False)
    await store.aclose()
    return sqlite_path


def change(path: Path, *statements: tuple[str, Sequence[object]]) -> None:
    connection = sqlite3.connect(path)
    for statement, parameters in statements:
        connection.execute(statement, parameters)
    connection.commit()
    connection.close()


def asides(path: Path) -> list[Path]:
    found = path.parent.glob(f"{path.name}.damaged-*")
    return sorted(aside for aside in found if not aside.name.endswith(("-wal", "-shm")))


async def get(store: SQLiteStore, *keys: bytes) -> dict[bytes, bytes]:
    return await store.get_many(keys, timeout_s=60.0)


async def put(store: SQLiteStore, *keys: bytes) -> dict[bytes, bytes]:
    return await store.put_many({key: value(key) for key in keys}, ttl_s=None, overwrite=False)


async def salvaged(store: SQLiteStore) -> None:
    """Until nothing is being copied from a file that was set aside."""
    await put(store)
    while store._salvage is not None:
        await put(store)


# --- slots and values that don't fit


async def test_a_slot_without_its_value_is_a_miss_and_is_replaced(
    filled: Path, open_store: Callable[..., SQLiteStore]
) -> None:
    change(filled, ("DELETE FROM value WHERE key = ?", [A]))
    store = open_store()
    assert await get(store, A, B) == {B: value(B)}
    assert await put(store, A, B) == {B: value(B)}
    assert await get(store, A, B) == {A: value(A), B: value(B)}
    assert asides(filled) == []


async def test_a_slot_without_its_value_opens_no_circuit(filled: Path, open_store: Callable[..., SQLiteStore]) -> None:
    change(filled, *(("DELETE FROM value WHERE key = ?", [key]) for key in KEYS[:10]))
    metrics = Metrics()
    cache = make_cache(open_store(), metrics=metrics)
    for key in KEYS[:10]:
        await cache.write({key: record()}, overwrite=False)
    for key in KEYS[:10]:
        assert served(cache.peek_confirmed([key], min_stored_at_s=0).found) == {key: b"[1.0,0.5]"}
    assert cache._store._breakers["write"].state.value == "closed"
    assert metrics.store_unstored_items.labels("corrupt").value == 0


async def test_a_slot_with_the_value_of_another_key_does_not_displace_it(
    filled: Path, open_store: Callable[..., SQLiteStore]
) -> None:
    change(filled, ("UPDATE slot SET id = (SELECT id FROM slot WHERE key = ?) WHERE key = ?", [B, A]))
    store = open_store()
    assert await get(store, A, B) == {B: value(B)}
    for _ in range(2):
        await put(store, A, B)
        assert await get(store, A, B) == {A: value(A), B: value(B)}
    await store.put_many({A: b"refreshed"}, ttl_s=None, overwrite=True)
    assert await get(store, A, B) == {A: b"refreshed", B: value(B)}


async def test_two_slots_with_one_value_in_a_file_of_an_earlier_version_do_not_displace_each_other(
    filled: Path, open_store: Callable[..., SQLiteStore]
) -> None:
    change(
        filled,
        ("DROP TABLE proxy", []),
        ("ALTER TABLE value DROP COLUMN key", []),
        ("UPDATE slot SET id = (SELECT id FROM slot WHERE key = ?) WHERE key = ?", [B, A]),
    )
    store = open_store()
    assert await get(store, C) == {C: value(C)}
    assert (await get(store, A))[A] == value(B)  # the cache finds by the record that it is not that of A
    assert await store.put_many({A: value(A)}, ttl_s=None, overwrite=False, invalid={A: value(B)}) == {}
    await put(store, A, B)
    for _ in range(2):
        assert await get(store, A, B) == {A: value(A), B: value(B)}
        await put(store, A, B)


@pytest.mark.parametrize("garbage", [None, b"\xff\x80", "text", 2**62, -(2**62), 0.5])
async def test_a_damaged_time_of_last_read_is_updated(
    filled: Path, open_store: Callable[..., SQLiteStore], garbage: object
) -> None:
    change(
        filled,
        ("CREATE TABLE other (key BLOB PRIMARY KEY, id, read_at) WITHOUT ROWID", []),
        ("INSERT INTO other SELECT * FROM slot", []),
        ("UPDATE other SET read_at = ? WHERE key = ?", [garbage, A]),
        ("DROP TABLE slot", []),
        ("ALTER TABLE other RENAME TO slot", []),
    )
    store = open_store()
    assert await get(store, A, B) == {A: value(A), B: value(B)}
    await salvaged(store)
    assert await get(store, A, B) == {A: value(A), B: value(B)}


async def test_slots_without_values_do_not_keep_a_full_file_from_making_room(
    sqlite_path: Path, open_store: Callable[..., SQLiteStore]
) -> None:
    now = 1000.0
    store = open_store(limit_bytes=2 * MIB, clock=lambda: now)
    await put(store, *KEYS)
    await store.aclose()
    change(sqlite_path, ("DELETE FROM value WHERE id IN (SELECT id FROM slot ORDER BY id LIMIT 100)", []))
    store = open_store(limit_bytes=2 * MIB, clock=lambda: now)
    for start in range(0, 3000, 50):
        now += 100
        more = [number.to_bytes(4, "big") * 8 for number in range(1000 + start, 1050 + start)]
        await put(store, *more)
        assert sqlite_path.stat().st_size <= 2 * MIB + 8 * PAGE
        assert len(await get(store, *more)) == 50
    assert asides(sqlite_path) == []


async def test_the_room_of_values_without_a_slot_is_reclaimed(
    filled: Path, open_store: Callable[..., SQLiteStore]
) -> None:
    change(filled, ("DELETE FROM slot", []))
    store = open_store(limit_bytes=MIB // 2)
    await put(store, *KEYS[:100])
    assert len(await get(store, *KEYS[:100])) == 100
    assert asides(filled) == []


# --- files beyond help


def overwritten(at: int, with_: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(with_)

    return damage


def truncated(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def rotten(path: Path) -> None:
    dice = random.Random(1)
    overwritten(0, dice.randbytes(path.stat().st_size))(path)


BEYOND_HELP: dict[str, Callable[[Path], None]] = {
    "the header": overwritten(0, b"SQLite f\0rmat 4"),
    "its version": overwritten(18, b"\3"),  # to SQLite it is then read-only
    "its page size": overwritten(16, b"\2\0"),
    "the schema": overwritten(PAGE - 400, bytes(400)),
    "the first page": overwritten(100, b"\xff" * (PAGE - 100)),
    "cut": truncated(5 * PAGE),
    "cut within a page": truncated(5 * PAGE + 100),
    "cut to a header": truncated(100),
    "cut to a page": truncated(PAGE),
    "no tables": lambda path: change(path, ("DROP TABLE slot", []), ("DROP TABLE value", []), ("DROP TABLE proxy", [])),
    "another table": lambda path: change(path, ("ALTER TABLE slot RENAME TO slat", [])),
}


@pytest.mark.parametrize("how", BEYOND_HELP)
@pytest.mark.parametrize("is_open", [False, True], ids=["before it is opened", "while it is used"])
async def test_a_damaged_file_is_set_aside_and_a_new_one_created(
    filled: Path,
    open_store: Callable[..., SQLiteStore],
    caplog: pytest.LogCaptureFixture,
    how: str,
    is_open: bool,
) -> None:
    store = open_store()
    if is_open:
        await put(store, *KEYS[:10])
        await get(store, *KEYS[:10])
    BEYOND_HELP[how](filled)
    damaged = filled.read_bytes()
    stores = [store, open_store()]  # the damage may first show to whom has to read all of it
    for _ in range(3):
        for store in stores:
            await get(store, *KEYS)
            await put(store, *KEYS)
            await salvaged(store)
    for store in stores:
        assert await get(store, *KEYS) == {key: value(key) for key in KEYS}
    (aside,) = asides(filled)
    assert aside.name in caplog.text
    if not is_open:
        assert aside.read_bytes()[: len(damaged)] == damaged


async def test_a_store_that_nothing_is_left_of_is_set_aside_only_by_a_process_that_used_it(
    filled: Path, open_store: Callable[..., SQLiteStore]
) -> None:
    user, other = open_store(), open_store()
    await user._reader.run(lambda connection: connection.execute("SELECT 1"))  # unlike a read, it writes no log
    rotten(filled)
    damaged = filled.read_bytes()
    with pytest.raises(StoreError, match="a file of something else and no store; left unchanged"):
        await get(other, A)
    assert filled.read_bytes() == damaged
    for store in (user, other):
        await put(store, *KEYS)  # also by the thread that had not opened it
        assert await get(store, *KEYS) == {key: value(key) for key in KEYS}
    (aside,) = asides(filled)
    assert aside.read_bytes()[: len(damaged)] == damaged


async def test_processes_that_share_a_damaged_file_set_it_aside_once_and_share_the_new_one(
    filled: Path, open_store: Callable[..., SQLiteStore]
) -> None:
    stores = [open_store() for _ in range(4)]
    for store in stores:
        await get(store, A)
        await put(store, A)
    overwritten(0, bytes(100))(filled)
    for store in stores:
        for cache in (store._reader, store._writer):
            cache._thread.submit(cache._close).result()  # so that all of them see what is on the disk
    await asyncio.gather(*(get(store, *KEYS) for store in stores), *(put(store, *KEYS[:50]) for store in stores))
    for number, store in enumerate(stores):
        await put(store, KEYS[100 + number])
    for store in stores:
        assert (await get(store, *KEYS[100:104])).keys() == set(KEYS[100:104])
    assert len(asides(filled)) == 1


async def test_a_process_that_did_not_see_the_damage_uses_the_new_file_too(
    filled: Path, open_store: Callable[..., SQLiteStore]
) -> None:
    """Its log and shared memory are the old file's, and closing it must not delete those of the new one."""
    old, new = open_store(), open_store()
    await get(old, A)
    await put(old, A)
    overwritten(0, bytes(100))(filled)
    assert await get(new, A) == {}  # opened now
    await put(new, B)
    assert await get(old, A, B) == {B: value(B)}
    await put(old, C)
    await old.aclose()
    assert await get(new, B, C) == {B: value(B), C: value(C)}
    await put(new, *KEYS)
    assert len(await get(open_store(), *KEYS)) == len(KEYS)
    assert len(asides(filled)) == 1


async def test_the_readable_values_of_a_file_that_was_set_aside_are_copied(
    filled: Path, open_store: Callable[..., SQLiteStore], caplog: pytest.LogCaptureFixture
) -> None:
    overwritten(10 * PAGE, b"\xff" * PAGE)(filled)
    store = open_store()
    await get(store, *KEYS)
    await put(store, b"x" * 32)
    await salvaged(store)
    kept = await get(store, *KEYS)
    assert len(asides(filled)) == 1
    assert len(kept) > 0.9 * len(KEYS)
    assert kept == {key: value(key) for key in kept}
    assert f"{len(kept)} entries copied from {asides(filled)[0].name}" in caplog.text


async def test_copied_values_do_not_overwrite_newer_ones(filled: Path, open_store: Callable[..., SQLiteStore]) -> None:
    overwritten(10 * PAGE, b"\xff" * PAGE)(filled)
    store = open_store()
    await store.put_many(dict.fromkeys(KEYS, b"new"), ttl_s=None, overwrite=True)
    await salvaged(store)
    assert await get(store, *KEYS) == dict.fromkeys(KEYS, b"new")


async def test_a_deleted_file_is_created_again_at_once(filled: Path, open_store: Callable[..., SQLiteStore]) -> None:
    store = open_store()
    assert await get(store, A) == {A: value(A)}
    await put(store, A)
    filled.unlink()
    assert await get(store, A) == {}
    await put(store, A)
    assert await get(open_store(), A) == {A: value(A)}


async def test_damaged_files_do_not_fill_the_disk(filled: Path, open_store: Callable[..., SQLiteStore]) -> None:
    for number in range(4):
        store = open_store()
        overwritten(0, bytes(100))(filled)
        if number < 3:
            await put(store, *KEYS)
        else:
            with pytest.raises(StoreError, match="check the disk") as failed:
                await put(store, *KEYS)
            assert failed.value.reason == "corrupt"
        await store.aclose()
    assert len(asides(filled)) == 3
    for aside in asides(filled):
        aside.unlink()
    await put(open_store(), *KEYS)


async def test_a_file_of_a_later_version_is_left_unchanged(
    filled: Path, open_store: Callable[..., SQLiteStore]
) -> None:
    change(filled, ("ALTER TABLE value RENAME TO vectors", []), ("PRAGMA user_version = 2", []))
    before = filled.read_bytes()
    with pytest.raises(StoreError, match="another version"):
        await put(open_store(), A)
    assert filled.read_bytes() == before
    assert asides(filled) == []


@pytest.mark.parametrize("pragma", ["application_id = 1", "user_version = 3"])
async def test_a_flipped_bit_in_the_header_does_not_make_the_file_a_foreign_one(
    filled: Path, open_store: Callable[..., SQLiteStore], pragma: str
) -> None:
    change(filled, (f"PRAGMA {pragma}", []))
    assert await get(open_store(), A) == {A: value(A)}
    assert asides(filled) == []


async def test_a_full_disk_or_a_lock_does_not_set_the_file_aside(
    filled: Path, open_store: Callable[..., SQLiteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.cache.sqlite.file._BUSY_TIMEOUT_S", 0.0)
    store = open_store()
    holder = sqlite3.connect(filled, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError) as failed:
        await put(store, b"x" * 32)
    assert failed.value.reason == "timeout"
    holder.execute("ROLLBACK")
    holder.close()
    await put(store, b"x" * 32)
    (pages,) = await store._writer.run(lambda connection: connection.execute("PRAGMA page_count").fetchone())
    await store._writer.run(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(StoreError) as failed:
        await put(store, *(number.to_bytes(4, "big") * 8 for number in range(5000, 6000)))
    assert failed.value.reason == "refused"
    assert asides(filled) == []
    await put(store, b"y" * 32)


# --- anything


def flip(path: Path, dice: random.Random, *, bytes_: int) -> None:
    with path.open("r+b") as file:
        for _ in range(bytes_):
            at = dice.randrange(path.stat().st_size)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << dice.randrange(8)]))


def spoil(path: Path, dice: random.Random) -> None:
    """Damage the file or its log, in place."""
    log = Path(f"{path}-wal")
    if log.exists() and dice.random() < 0.3:
        path = log
    size = path.stat().st_size
    how = dice.choice(["flip", "flip", "flip", "cut", "zeros", "garbage", "swap"])
    if not size:
        return
    if how == "flip":
        flip(path, dice, bytes_=dice.choice([1, 3, 30, 1000]))
    elif how == "cut":
        os.truncate(path, dice.randrange(size))
    else:
        start = dice.choice([dice.randrange(size), dice.randrange(size) // PAGE * PAGE, 0])
        length = min(size - start, dice.choice([1, 512, 4096, PAGE, 3 * PAGE]))
        other = dice.randrange(size - length + 1)
        new = {"zeros": bytes(length), "garbage": dice.randbytes(length), "swap": path.read_bytes()[other:][:length]}
        overwritten(start, new[how])(path)


def of_400_dimensions(number: int) -> Record:
    vector = vectors.from_numbers([number + n / 1000 for n in range(400)])
    return replace(record(), vector=vector)


async def remove_what_nobody_recognizes(path: Path) -> None:
    """As an operator does with a file so damaged that it could be anything: no proxy starts with it."""
    if other_than_store(path) is not None:
        damaged = path.read_bytes()
        store = SQLiteStore(path, limit_bytes=64 * MIB)
        with pytest.raises(StoreError, match="left unchanged"):
            await get(store, A)
        await store.aclose()
        assert path.read_bytes() == damaged
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()


@pytest.mark.parametrize("seed", range(3000 if IS_SLOW_PROFILE else 40))
async def test_whatever_the_damage_an_item_is_a_hit_at_its_second_request(sqlite_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    fresh = {key: of_400_dimensions(number) for number, key in enumerate(KEYS)}
    texts = {key: Entry.of(its).numbers() for key, its in fresh.items()}
    clock = Clock()
    store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB, clock=clock)
    await store.put_many({key: records.encode(key, its) for key, its in fresh.items()}, ttl_s=None, overwrite=False)
    if dice.random() < 0.5:
        await store.aclose()
        store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB, clock=clock)
    spoil(sqlite_path, dice)
    if store._writer._connection is None:
        await remove_what_nobody_recognizes(sqlite_path)
    hits, rounds = 0, 0
    while hits < len(KEYS):
        rounds += 1
        assert rounds < 8
        metrics = Metrics()
        cache = make_cache(store, metrics=metrics, clock=clock, timeout_s=60.0)
        hits = 0
        keys = dice.sample(KEYS, len(KEYS))
        for start in range(0, len(keys), 50):
            found = await look_up(cache, *keys[start : start + 50])
            assert found == {key: texts[key] for key in found}
            hits += len(found)
            missing = {key: fresh[key] for key in keys[start : start + 50] if key not in found}
            await cache.write(missing, overwrite=False)
            await written(cache)
        assert cache._store._breakers["write"].state.value == "closed"
        # Pages that a connection holds hide damage on the disk from it, and that of a live log is not looked for.
        await cache.aclose()
        await remove_what_nobody_recognizes(sqlite_path)
        store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB, clock=clock)
    await store.aclose()
    assert len(asides(sqlite_path)) <= 1


@pytest.mark.long
async def test_writers_that_are_killed_and_damage_at_any_time_leave_a_store_that_works(sqlite_path: Path) -> None:
    dice = random.Random(7)
    for _ in range(8 if not IS_SLOW_PROFILE else 100):
        writers = [
            subprocess.Popen([sys.executable, "-c", KILLED_WRITER, str(sqlite_path)], stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            for _ in range(dice.randrange(1, 40)):
                writer.stdout.readline()
        if dice.random() < 0.5:
            flip(sqlite_path, dice, bytes_=3)
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
        for aside in asides(sqlite_path):
            aside.unlink()
        store = SQLiteStore(sqlite_path, limit_bytes=64 * MIB)
        for _ in range(3):
            await put(store, *KEYS)
            await salvaged(store)
        # Values are not checked here but by the cache, as records.
        assert (await get(store, *KEYS)).keys() == set(KEYS)
        await store.put_many(dict.fromkeys(KEYS, b""), ttl_s=None, overwrite=True)
        assert await get(store, *KEYS) == dict.fromkeys(KEYS, b"")
        await store.aclose()
