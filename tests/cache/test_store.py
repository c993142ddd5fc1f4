"""One suite for every store: what the cache relies on."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from proxy.cache.redis.store import RedisStore
from proxy.cache.sqlite.store import SQLiteStore
from proxy.cache.store import CounterStore, Purge, PurgedModels, Store
from tests.support.dict_store import key_of as key
from tests.support.dict_store import look_up, make_cache, record, written
from tests.support.servers import AVAILABLE, Servers

OpenStore = Callable[[], Store]


KINDS = [f"{program}-{kind}" for program in AVAILABLE for kind in ("tcp", "unix", "cluster", "sentinel")]


@pytest.fixture(params=["sqlite", *KINDS])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path, servers: Servers) -> AsyncIterator[OpenStore]:
    """Opens the same, at first empty, store as often as it is called, as several processes would."""
    async with AsyncExitStack() as stack:
        program, _, kind = request.param.partition("-")
        url = servers.emptied(kind, program) if kind else None

        def open_() -> Store:
            store: Store
            if url is None:
                store = SQLiteStore(tmp_path / "folder" / "cache.sqlite3", limit_bytes=64 * 1024**2)
            else:
                store = RedisStore(url, timeout_s=5.0, max_connections=8)
            stack.push_async_callback(store.aclose)
            return store

        yield open_


async def test_a_new_store_has_nothing(open_store: OpenStore) -> None:
    assert await open_store().get_many([key(1), key(2)], timeout_s=5.0) == {}


async def test_another_process_gets_the_value(open_store: OpenStore) -> None:
    values = {key(n): bytes([n]) * n for n in range(1, 200)}
    assert await open_store().put_many(values, ttl_s=None, overwrite=False) == {}
    assert await open_store().get_many([*values, key(1000)], timeout_s=5.0) == values


async def test_the_first_value_stays_and_the_second_writer_gets_it(open_store: OpenStore) -> None:
    store = open_store()
    await store.put_many({key(1): b"first"}, ttl_s=None, overwrite=False)
    existing = await store.put_many({key(1): b"second", key(2): b"new"}, ttl_s=None, overwrite=False)
    assert existing == {key(1): b"first"}
    assert await store.get_many([key(1), key(2)], timeout_s=5.0) == {key(1): b"first", key(2): b"new"}


async def test_overwrite_replaces_and_returns_nothing(open_store: OpenStore) -> None:
    store = open_store()
    await store.put_many({key(1): b"first"}, ttl_s=None, overwrite=False)
    assert await store.put_many({key(1): b"second", key(2): b"new"}, ttl_s=None, overwrite=True) == {}
    assert await store.get_many([key(1), key(2)], timeout_s=5.0) == {key(1): b"second", key(2): b"new"}


async def test_all_writers_at_once_agree_on_one_winner(open_store: OpenStore) -> None:
    stores = [open_store() for _ in range(4)]
    mine = [{key(n): b"%d" % i for n in range(50)} for i in range(len(stores))]
    existing = await asyncio.gather(
        *(store.put_many(values, ttl_s=None, overwrite=False) for store, values in zip(stores, mine, strict=True))
    )
    winners = await open_store().get_many([key(n) for n in range(50)], timeout_s=5.0)
    assert len(winners) == 50
    for values, taken in zip(mine, existing, strict=True):
        assert values | taken == winners


async def test_many_readers_at_once_each_get_their_own(open_store: OpenStore) -> None:
    store = open_store()
    values = {key(n): b"%d" % n for n in range(600)}
    await store.put_many(values, ttl_s=None, overwrite=False)
    asked = [[key(n) for n in range(start, start + 40)] for start in range(0, 620, 10)]
    replies = await asyncio.gather(*(store.get_many(keys, timeout_s=5.0) for keys in asked))
    for keys, reply in zip(asked, replies, strict=True):
        assert reply == {k: values[k] for k in keys if k in values}


async def test_cancelling_one_reader_does_not_affect_others(open_store: OpenStore) -> None:
    store = open_store()
    await store.put_many({key(1): b"1", key(2): b"2"}, ttl_s=None, overwrite=False)
    leaving = asyncio.create_task(store.get_many([key(1)], timeout_s=5.0))
    staying = asyncio.create_task(store.get_many([key(1), key(2)], timeout_s=5.0))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == {key(1): b"1", key(2): b"2"}
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await store.get_many([key(2)], timeout_s=5.0) == {key(2): b"2"}


@pytest.mark.parametrize("size", [1, 6_300, 100_000, 1_000_000])
async def test_values_of_any_size(open_store: OpenStore, size: int) -> None:
    store = open_store()
    await store.put_many({key(1): b"x" * size}, ttl_s=None, overwrite=False)
    assert await store.get_many([key(1)], timeout_s=5.0) == {key(1): b"x" * size}


async def test_thousands_at_once(open_store: OpenStore) -> None:
    store = open_store()
    values = {key(n): n.to_bytes(64, "big") for n in range(3000)}
    await store.put_many(values, ttl_s=None, overwrite=False)
    assert await store.get_many(list(values), timeout_s=5.0) == values


async def test_the_first_value_replaces_an_invalid_one(open_store: OpenStore) -> None:
    store, other = open_store(), open_store()
    await store.put_many({key(1): b"invalid", key(2): b"good"}, ttl_s=None, overwrite=False)
    invalid = {key(1): b"invalid"}
    mine = {key(1): b"mine", key(2): b"mine", key(3): b"mine"}
    assert await store.put_many(mine, ttl_s=None, overwrite=False, invalid=invalid) == {key(2): b"good"}
    theirs = {key(1): b"theirs"}
    assert await other.put_many(theirs, ttl_s=None, overwrite=False, invalid=invalid) == {key(1): b"mine"}
    assert await other.get_many([key(1), key(2), key(3)], timeout_s=5.0) == mine | {key(2): b"good"}


async def test_a_value_is_stored_though_the_invalid_one_is_gone(open_store: OpenStore) -> None:
    store = open_store()
    assert await store.put_many({key(1): b"x"}, ttl_s=None, overwrite=False, invalid={key(1): b"invalid"}) == {}
    assert await store.get_many([key(1)], timeout_s=5.0) == {key(1): b"x"}


async def test_caches_that_did_not_wait_for_replies_serve_one_vector_in_the_end(open_store: OpenStore) -> None:
    caches = [make_cache(open_store(), timeout_s=0.0) for _ in range(3)]
    keys = [key(n) for n in range(200)]
    for number, cache in enumerate(caches):
        await cache.write({its: record(float(number)) for its in keys}, overwrite=False)
    await asyncio.gather(*map(written, caches))
    for cache in caches:
        cache._store._timeout_s = 60.0
    replies = [await look_up(cache, *keys) for cache in caches]
    assert len(replies[0]) == len(keys)
    assert replies == replies[:1] * len(caches)


async def changes(store: Store) -> set[bytes]:
    """All that is new in the log."""
    return (await changes_and_purges(store))[0]


async def changes_and_purges(store: Store) -> tuple[set[bytes], set[bytes], set[PurgedModels]]:
    """The keys that were replaced or removed, and those and the models that are purged."""
    keys: set[bytes] = set()
    purged: set[bytes] = set()
    models: set[PurgedModels] = set()
    has_more = True
    while has_more:
        part = await store.changes()
        assert part.is_complete
        keys.update(part.keys)
        purged.update(part.purge.keys)
        models.update(part.purge.models)
        has_more = part.has_more
    return keys, purged, models


async def test_every_process_learns_once_which_values_were_replaced(open_store: OpenStore) -> None:
    writer, readers = open_store(), [open_store() for _ in range(2)]
    await writer.put_many({key(n): b"first" for n in range(300)}, ttl_s=None, overwrite=False)
    assert [await changes(reader) for reader in readers] == [set(), set()]
    replaced = {key(n): b"second" for n in range(200)}
    await writer.put_many(replaced, ttl_s=None, overwrite=True)
    for reader in (*readers, writer):
        assert await changes(reader) == set(replaced)
        assert await changes(reader) == set()
    assert await readers[0].get_many(list(replaced), timeout_s=5.0) == replaced


async def test_a_process_that_begins_later_learns_it_too(open_store: OpenStore) -> None:
    await open_store().put_many({key(1): b"x"}, ttl_s=None, overwrite=True)
    assert await changes(open_store()) == {key(1)}


async def test_what_is_new_and_what_replaces_an_invalid_value_is_not_announced(open_store: OpenStore) -> None:
    writer, reader = open_store(), open_store()
    await writer.put_many({key(n): b"bad" for n in range(3)}, ttl_s=None, overwrite=False)
    await writer.put_many({key(n): b"x" for n in range(2)}, ttl_s=None, overwrite=False, invalid={key(1): b"bad"})
    assert await changes(reader) == set()


async def test_processes_that_replace_at_once_lose_no_announcement(open_store: OpenStore) -> None:
    stores = [open_store() for _ in range(4)]
    await asyncio.gather(
        *(
            store.put_many({key(1000 * number + n): b"x" for n in range(100)}, ttl_s=None, overwrite=True)
            for number, store in enumerate(stores)
        )
    )
    for store in stores:
        assert await changes(store) == {key(1000 * number + n) for number in range(4) for n in range(100)}


async def scanned(store: Store) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    cursor: bytes | None = b""
    while cursor is not None:
        page = await store.scan(cursor)
        found.update(page.values)
        cursor = page.cursor
    return found


@pytest.mark.parametrize("count", [0, 1, 256, 1000])
async def test_a_scan_finds_every_value(open_store: OpenStore, count: int) -> None:
    values = {key(n): b"%d" % n * (n % 7) for n in range(count)}
    if values:
        await open_store().put_many(values, ttl_s=None, overwrite=False)
    assert await scanned(open_store()) == values


async def test_a_page_is_bounded_and_another_process_goes_on_with_the_next(open_store: OpenStore) -> None:
    values = {key(n): bytes([n % 256]) * 20_000 for n in range(1200)}
    for start in range(0, 1200, 300):
        await open_store().put_many(
            {key(n): values[key(n)] for n in range(start, start + 300)}, ttl_s=None, overwrite=False
        )
    found: dict[bytes, bytes] = {}
    cursor: bytes | None = b""
    while cursor is not None:
        page = await open_store().scan(cursor)
        assert len(page.values) < 1200
        found.update(page.values)
        cursor = page.cursor
    assert found == values


async def test_a_scan_misses_nothing_that_is_replaced_meanwhile(open_store: OpenStore) -> None:
    store, other = open_store(), open_store()
    keys = [key(n) for n in range(600)]
    await store.put_many(dict.fromkeys(keys, b"first"), ttl_s=None, overwrite=False)
    page = await store.scan()
    found = dict(page.values)
    some = [*keys[:50], *keys[550:]]  # of the beginning and the end, whichever order the store has
    await other.put_many(dict.fromkeys(reversed(some), b"second"), ttl_s=None, overwrite=True)
    while page.cursor is not None:
        page = await store.scan(page.cursor)
        found.update(page.values)
    assert found.keys() == set(keys)
    assert set(found.values()) <= {b"first", b"second"}


async def test_what_is_deleted_is_gone_and_announced(open_store: OpenStore) -> None:
    store, other = open_store(), open_store()
    await store.put_many({key(n): b"x" for n in range(300)}, ttl_s=None, overwrite=False)
    assert await changes(other) == set()
    gone = [key(n) for n in range(200, 400)]
    assert await store.delete_many(gone) == 100
    assert await changes_and_purges(other) == (set(gone), set(), set())
    assert set(await scanned(other)) == {key(n) for n in range(200)}
    assert await other.put_many({key(250): b"y"}, ttl_s=None, overwrite=False) == {}
    assert await store.get_many([key(250), key(251)], timeout_s=5.0) == {key(250): b"y"}
    assert await store.delete_many([]) == 0


async def test_every_process_learns_what_is_purged(open_store: OpenStore) -> None:
    store, other = open_store(), open_store()
    purged = {key(n) for n in range(100)}
    texts, greater = PurgedModels("text-*"), PurgedModels("größer*")
    some = {
        PurgedModels("text-*", b"scope  1"), PurgedModels("größer*", b""), PurgedModels("*", None, 1_700_000_000.25),
        PurgedModels("*", b"\0\xff scope", 1_700_000_000.25),
    }  # fmt: skip
    await store.announce_purge(Purge(purged, {texts}))
    await store.announce_purge(Purge(models={greater, *some}))
    assert await changes_and_purges(other) == (set(), purged, {texts, greater, *some})
    assert await changes_and_purges(other) == (set(), set(), set())
    await store.announce_purge(Purge(models={texts}))
    for process in (other, store):
        assert texts in (await changes_and_purges(process))[2]


async def test_processes_add_to_one_counter(open_store: OpenStore) -> None:
    stores = [open_store() for _ in range(3)]
    assert all(isinstance(store, CounterStore) for store in stores)
    later_s = int(time.time()) + 1000

    async def add(store: Store, amount: int) -> int:
        assert isinstance(store, CounterStore)
        return await store.add("b:team:1800000000", amount, expires_at_s=later_s)

    assert await add(stores[0], 0) == 0
    totals = await asyncio.gather(*(add(store, amount) for store in stores for amount in range(1, 20)))
    assert max(totals) == 3 * 190
    assert len(set(totals)) == len(totals)
    assert [await add(store, 0) for store in stores] == [570] * 3
    store = stores[0]
    assert isinstance(store, CounterStore)
    assert await store.add("another", 5, expires_at_s=later_s) == 5


async def test_counters_are_no_values(open_store: OpenStore) -> None:
    store = open_store()
    assert isinstance(store, CounterStore)
    await store.add("b", 1, expires_at_s=int(time.time()) + 1000)
    assert await scanned(store) == {}
