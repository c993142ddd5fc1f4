"""Entries on their way: into files, from whole and damaged ones, between stores of every kind, never twice."""

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from proxy.cache.redis.store import RedisStore
from proxy.cache.sqlite.store import SQLiteStore
from proxy.cache.store import Store
from proxy.errors import ConfigError, StoreError
from proxy.maintenance import archive_format, transfer
from proxy.maintenance.archive import parts_of
from proxy.maintenance.archive_format import Entry
from proxy.maintenance.entry_writer import EntryWriter, WrittenEntries
from proxy.protocol import records
from tests.cache.test_store import scanned
from tests.support.dict_store import DictStore, key_of, record
from tests.support.servers import AVAILABLE, Servers

NOW_S = 1_000_000.0
KINDS = ["sqlite", *(kind for kind in ("tcp", "cluster", "sentinel") if AVAILABLE)]
Open = Callable[[str, str], Store]


def values(*numbers: int, at: float = NOW_S) -> dict[bytes, bytes]:
    """Records of this version, whose scopes are known, and between them those of earlier versions."""
    made = {n: record(float(n), at=at, scope=bytes(8 * [n % 3]) if n % 3 else b"") for n in numbers}
    return {key_of(n): records.encode(key_of(n), its) for n, its in made.items()}


VALUES = values(*range(700))


def holding(stored: dict[bytes, bytes]) -> DictStore:
    store = DictStore()
    store.values = dict(stored)
    return store


def writer(
    store: Store, *, ttl_s: float | None = None, overwrites: bool = False, is_dry_run: bool = False
) -> EntryWriter:
    return EntryWriter(store, now_s=NOW_S, ttl_s=ttl_s, overwrites=overwrites, is_dry_run=is_dry_run)


def ignore(_: int) -> None:
    return None


async def exported(store: Store, path: Path) -> transfer.Exported:
    return await transfer.export(store, path, origin="here", advance=ignore)


@pytest.fixture
async def open_store(tmp_path: Path, servers: Servers) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        def open_(kind: str, name: str) -> Store:
            store: Store
            if kind == "sqlite":
                store = SQLiteStore(tmp_path / name, limit_bytes=64 * 1024**2)
            else:
                store = RedisStore(servers.emptied(kind, AVAILABLE[0]), timeout_s=5.0, max_connections=8)
            stack.push_async_callback(store.aclose)
            return store

        yield open_


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
async def test_between_every_pair_of_stores_the_bytes_stay_the_same(
    open_store: Open, tmp_path: Path, first: str, second: str
) -> None:
    source = open_store(first, "a")
    await source.put_many(VALUES, ttl_s=None, overwrite=False)
    path = tmp_path / "entries"
    assert (await exported(source, path)).entries == len(VALUES)
    target = open_store(second, "b")  # emptied; it may be the same server
    done = await transfer.import_(path, writer(target), advance=ignore)
    assert done == transfer.Imported(written=WrittenEntries(stored=len(VALUES)), is_complete=True)
    assert await scanned(target) == VALUES
    assert await target.get_many(list(VALUES), timeout_s=5.0) == VALUES
    if first == second != "sqlite":
        return
    third = open_store(second, "c")
    assert await transfer.copy(source, writer(third), advance=ignore) == WrittenEntries(stored=len(VALUES))
    assert await scanned(third) == VALUES


async def test_existing_entries_stay_unless_they_are_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "entries"
    await exported(holding(VALUES), path)
    own = values(3, at=NOW_S - 5)
    store = holding(own)
    done = await transfer.import_(path, writer(store), advance=ignore)
    assert (done.written.stored, done.written.existing) == (len(VALUES) - 1, 1)
    assert store.values == VALUES | own
    again = await transfer.import_(path, writer(store), advance=ignore)
    assert (again.written.stored, again.written.existing) == (0, len(VALUES))
    replacing = await transfer.import_(path, writer(store, overwrites=True), advance=ignore)
    assert (replacing.written.stored, replacing.written.existing) == (len(VALUES), 0)
    assert store.values == VALUES


async def test_a_dry_run_stores_nothing_and_says_what_it_would() -> None:
    store = holding(values(3))
    for overwrites, expected in ((False, WrittenEntries(stored=699, existing=1)), (True, WrittenEntries(stored=700))):
        dry = writer(store, is_dry_run=True, overwrites=overwrites)
        assert await transfer.copy(holding(VALUES), dry, advance=ignore) == expected
    assert store.values == values(3)


async def test_entries_keep_their_age_in_a_store_with_a_ttl() -> None:
    kept: dict[bytes, float] = {}
    store = DictStore()
    put_many = store.put_many

    async def noting(values: dict[bytes, bytes], *, ttl_s: dict[bytes, float], overwrite: bool) -> dict[bytes, bytes]:
        kept.update(ttl_s)
        return await put_many(values, ttl_s=ttl_s, overwrite=overwrite)

    store.put_many = noting  # type: ignore[method-assign, assignment]
    old, young, future = values(1, at=NOW_S - 101), values(2, at=NOW_S - 30), values(3, at=NOW_S + 50)
    written = await transfer.copy(holding(old | young | future), writer(store, ttl_s=100.0), advance=ignore)
    assert written == WrittenEntries(stored=2, expired=1)
    assert kept == {key_of(2): 70.0, key_of(3): 100.0}
    assert store.values == young | future


@pytest.mark.skipif(not AVAILABLE, reason="no Redis")
async def test_redis_drops_an_imported_entry_when_its_own_time_is_up(servers: Servers, open_store: Open) -> None:
    from redis import Redis  # noqa: PLC0415

    store = open_store("tcp", "")
    await transfer.copy(
        holding(values(1, at=NOW_S - 990) | values(2, at=NOW_S - 10)), writer(store, ttl_s=1000.0), advance=ignore
    )
    with Redis.from_url(servers.one(AVAILABLE[0]).url) as admin:
        left_ms = [admin.pttl(f"embedding:{key_of(n).hex()}") for n in (1, 2)]
    assert 5_000 < left_ms[0] <= 10_000
    assert 985_000 < left_ms[1] <= 990_000


async def test_what_can_never_be_served_is_left_out(tmp_path: Path) -> None:
    good = values(1)
    bad = {key_of(2): b"damaged", key_of(3): good[key_of(1)]}
    store = DictStore()
    written = await transfer.copy(holding(good | bad), writer(store), advance=ignore)
    assert written == WrittenEntries(stored=1, invalid=written.invalid)
    assert dict(written.invalid) == {"checksum": 1, "key": 1}
    assert store.values == good


async def test_of_a_damaged_file_what_is_whole_is_imported_and_the_rest_named(tmp_path: Path) -> None:
    path = tmp_path / "entries"
    await exported(holding(VALUES), path)
    ends = [part.end for part in parts_of(path) if isinstance(part, Entry)]
    data = bytearray(path.read_bytes())
    data[ends[9] + 50] ^= 1  # in the eleventh entry
    del data[ends[-2] + 20 :]
    path.write_bytes(data)
    store = DictStore()
    done = await transfer.import_(path, writer(store), advance=ignore)
    lost = {key_of(10), key_of(699)}
    assert store.values == {key: value for key, value in VALUES.items() if key not in lost}
    assert done.damaged == [(ends[9], ends[10]), (ends[-2], ends[-2] + 20)]
    assert not done.is_complete


@pytest.mark.parametrize("fails_at", range(1, 6))
async def test_an_interrupted_export_continues(tmp_path: Path, fails_at: int) -> None:
    path, store = tmp_path / "entries", holding(VALUES)
    scan, calls = store.scan, itertools.count(1)

    async def failing(cursor: bytes = b"") -> object:
        if next(calls) == fails_at:
            raise StoreError("connection", "down")
        return await scan(cursor)

    store.scan = failing  # type: ignore[method-assign, assignment]
    with pytest.raises(StoreError):
        await exported(store, path)
    assert not path.exists()
    done = await exported(store, path)
    assert (done.entries, done.is_resumed) == (len(VALUES), fails_at > 1)
    found = [(part.key, part.value) for part in parts_of(path) if isinstance(part, Entry)]
    assert found == list(VALUES.items())
    assert [its.name for its in tmp_path.iterdir()] == ["entries"]
    assert path.stat().st_mode & 0o077 == 0, "vectors tell of their texts"


async def test_an_interrupted_export_of_another_store_or_with_damage_begins_again(tmp_path: Path) -> None:
    part = tmp_path / "entries.part"
    frames = [
        archive_format.header(origin="here"),
        archive_format.entry(key_of(5000), b"x"),
        archive_format.cursor(b"c"),
    ]
    for kept in (
        [archive_format.header(origin="there"), *frames[1:]],
        [frames[0], frames[1][:-1], frames[2]],
        [frames[0][:9] + b"damage"],
    ):
        part.write_bytes(b"".join(kept))
        path = tmp_path / "entries"
        done = await exported(holding(VALUES), path)
        assert done.entries == len(VALUES)
        found = [(its.key, its.value) for its in parts_of(path) if isinstance(its, Entry)]
        assert found == list(VALUES.items())
        path.unlink()


async def test_an_export_replaces_no_file_and_is_written_once_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "entries"
    path.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="it exists already"):
        await exported(holding(VALUES), path)
    assert path.read_bytes() == b"mine"
    path.unlink()
    store = holding(VALUES)
    scan = store.scan

    async def scan_during_another(cursor: bytes = b"") -> object:
        with pytest.raises(ConfigError, match="another export writes it"):
            await exported(holding(VALUES), path)
        return await scan(cursor)

    store.scan = scan_during_another  # type: ignore[method-assign, assignment]
    await exported(store, path)


async def test_a_write_that_fails_ends_the_import_and_nothing_is_left_under_way(tmp_path: Path) -> None:
    path = tmp_path / "entries"
    await exported(holding(VALUES), path)
    store = DictStore()
    store.write_failure = StoreError("refused", "full")
    with pytest.raises(StoreError, match="full"):
        await transfer.import_(path, writer(store), advance=ignore)
    store.write_failure = None
    done = await transfer.import_(path, writer(store), advance=ignore)
    assert done.written.stored == len(VALUES)


async def test_progress_is_told_in_entries_and_in_bytes(tmp_path: Path) -> None:
    path, moves = tmp_path / "entries", list[int]()
    await transfer.export(holding(VALUES), path, origin="here", advance=moves.append)
    assert sum(moves) == len(VALUES)
    moves.clear()
    await transfer.import_(path, writer(DictStore()), advance=moves.append)
    assert 0.3 * path.stat().st_size < sum(moves) <= path.stat().st_size
