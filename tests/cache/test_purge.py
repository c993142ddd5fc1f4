"""A purge reaches the memory of every process, and what was asked for before does not bring back what it removed."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy.cache.cache import Cache
from proxy.cache.recent_writes import RecentWrite, RecentWrites
from proxy.cache.store import Changes, Purge, PurgedModels
from proxy.errors import StoreError
from proxy.fetch.singleflight import Flights
from tests.support.dict_store import A, B, C, Clock, DictStore, look_up, make_cache, record, served, written

ONE, TWO = b"[1.0,0.5]", b"[2.0,0.5]"
OTHERS = b"scope  2"
EVERYTHING = Purge(models={PurgedModels("*")})


@pytest.fixture
async def store() -> DictStore:
    """As the operator's command has it open."""
    return DictStore()


@pytest.fixture
async def cache(store: DictStore) -> AsyncIterator[Cache]:
    """A process with a record of A in memory."""
    cache = make_cache(store.of_another_process())
    await cache.write({A: record(1.0)}, overwrite=False)
    await written(cache)
    await cache.feed.poll()
    yield cache
    await cache.aclose()


async def purge(store: DictStore, purge: Purge, *keys: bytes) -> None:
    await store.announce_purge(purge)
    await store.delete_many(keys)
    await store.announce_purge(purge)


PURGES = [
    Purge(keys=frozenset([A])), Purge(models={PurgedModels("m")}), EVERYTHING, Purge(models={PurgedModels("m", b"")}),
    Purge(models={PurgedModels("*", None, Clock.now + 1), PurgedModels("*", OTHERS)}),
]  # fmt: skip
# They cover nothing that the tests store.
OTHER_PURGES = [
    Purge(models={PurgedModels("*", OTHERS)}), Purge(models={PurgedModels("*", None, Clock.now)}),
    Purge(models={PurgedModels("other")}), Purge(models={PurgedModels("m", OTHERS, Clock.now + 1)}), Purge(keys={B}),
]  # fmt: skip


@pytest.mark.parametrize("announced", PURGES)
async def test_after_the_next_poll_nothing_of_it_is_served(store: DictStore, cache: Cache, announced: Purge) -> None:
    await purge(store, announced, A)
    assert await look_up(cache, A) == {A: ONE}
    await cache.feed.poll()
    assert await look_up(cache, A) == {}


@pytest.mark.parametrize("announced", PURGES)
@pytest.mark.parametrize("overwrite", [False, True])
async def test_what_was_asked_for_before_is_not_stored(
    store: DictStore, cache: Cache, announced: Purge, overwrite: bool
) -> None:
    asked = cache.now
    await purge(store, announced, A)
    await cache.feed.poll()
    entries = await cache.write({A: record(2.0), B: record(2.0, model="other")}, overwrite=overwrite, asked=asked)
    await written(cache)
    assert served(entries) == {A: TWO, B: TWO}  # its clients are served
    covers_both = any(models.pattern == "*" for models in announced.models)
    assert store.values.keys() == (set() if covers_both else {B})
    assert await look_up(cache, A, B) == ({} if covers_both else {B: TWO})


@pytest.mark.parametrize("announced", PURGES)
async def test_what_was_stored_before_the_process_knew_is_deleted_by_the_next_poll(
    store: DictStore, cache: Cache, announced: Purge
) -> None:
    asked = cache.now
    await purge(store, announced, A)
    other = make_cache(store.of_another_process())
    cache.memory.discard(A)
    await cache.write({A: record(2.0)}, overwrite=False, asked=asked)
    await written(cache)
    assert await look_up(other, A) == {A: TWO}
    await cache.feed.poll()
    assert A not in store.values
    assert await look_up(cache, A) == {}
    await other.feed.poll()
    assert await look_up(other, A) == {}


def store_of(cache: Cache) -> DictStore:
    """The store as this cache's process sees it."""
    its = cache._store._store
    assert isinstance(its, DictStore)
    return its


@pytest.mark.parametrize("announced", OTHER_PURGES)
async def test_what_it_does_not_cover_is_stored_and_stays(store: DictStore, cache: Cache, announced: Purge) -> None:
    asked = cache.now
    await cache.write({A: record(2.0)}, overwrite=True, asked=asked)  # before the purge, which is known only afterwards
    await written(cache)
    await purge(store, announced)
    for _ in range(2):
        await cache.feed.poll()
    assert A in store.values
    assert await look_up(cache, A) == {A: TWO}
    await cache.write({C: record(2.0)}, overwrite=False, asked=asked)  # after the purge, and asked for before it
    await written(cache)
    for _ in range(2):
        await cache.feed.poll()
    assert C in store.values
    assert await look_up(cache, A, C) == {A: TWO, C: TWO}


@pytest.mark.parametrize("announced", OTHER_PURGES)
async def test_what_it_does_not_cover_stays_though_memory_alone_has_it(
    store: DictStore, cache: Cache, announced: Purge
) -> None:
    its = store_of(cache)
    its.write_failure = StoreError("connection", "down")
    await cache.write({C: record(2.0)}, overwrite=False)
    await purge(store, announced)
    await cache.feed.poll()
    assert served(cache.peek([C], min_stored_at_s=0)) == {C: TWO}
    its.write_failure = None
    assert await look_up(cache, C) == {C: TWO}


@pytest.mark.parametrize("announced", OTHER_PURGES)
async def test_a_write_under_way_that_it_does_not_cover_is_served(
    store: DictStore, cache: Cache, announced: Purge
) -> None:
    its = store_of(cache)
    its.writes.clear()
    cache._store._timeout_s = 0.001
    await cache.write({C: record(2.0)}, overwrite=False)
    await purge(store, announced)
    await cache.feed.poll()
    assert served(cache.peek([C], min_stored_at_s=0)) == {C: TWO}
    its.writes.set()
    await written(cache)
    await cache.feed.poll()
    assert C in store.values


async def test_what_is_asked_for_afterwards_is_stored_and_stays(store: DictStore, cache: Cache) -> None:
    await purge(store, EVERYTHING, A)
    await cache.feed.poll()
    await cache.write({A: record(2.0)}, overwrite=False, asked=cache.now)
    await written(cache)
    for _ in range(3):
        await cache.feed.poll()
    assert await look_up(cache, A) == {A: TWO}
    assert A in store.values


async def test_deleting_a_late_write_does_not_concern_what_was_asked_for_since(store: DictStore, cache: Cache) -> None:
    asked = cache.now
    await purge(store, EVERYTHING, A)
    await cache.write({A: record(2.0)}, overwrite=True, asked=asked)
    await written(cache)
    await cache.feed.poll()
    asked = cache.now
    await cache.feed.poll()  # learns of its own deletion
    await cache.write({A: record(2.0)}, overwrite=False, asked=asked)
    await written(cache)
    await cache.feed.poll()
    assert await look_up(cache, A) == {A: TWO}


async def test_a_write_under_way_is_hidden_at_once_and_undone_when_it_ends(store: DictStore, cache: Cache) -> None:
    its = store_of(cache)
    its.writes.clear()
    cache._store._timeout_s = 0.001
    await cache.write({B: record(2.0)}, overwrite=False)
    assert served(cache.peek([B], min_stored_at_s=0)) == {B: TWO}
    await purge(store, EVERYTHING)
    await cache.feed.poll()
    assert cache.peek([B], min_stored_at_s=0) == {}
    its.writes.set()
    await written(cache)
    assert B in store.values
    await cache.feed.poll()
    assert B not in store.values
    assert cache.peek([B], min_stored_at_s=0) == {}


async def test_what_memory_alone_has_goes_too(store: DictStore, cache: Cache) -> None:
    """The store may have evicted it, or not been there when it was written."""
    its = store_of(cache)
    its.write_failure = StoreError("connection", "down")
    await cache.write({B: record(2.0)}, overwrite=False)
    store.values.clear()
    its.write_failure = None
    await purge(store, EVERYTHING)
    await cache.feed.poll()
    assert cache.peek([A, B], min_stored_at_s=0) == {}


async def test_a_late_write_is_remembered_until_the_log_was_read_completely(store: DictStore, cache: Cache) -> None:
    its = store_of(cache)
    asked = cache.now
    await cache.write({A: record(2.0)}, overwrite=True, asked=asked)
    await written(cache)
    changes, parts = its.changes, [Changes(is_complete=False), None]

    async def failing() -> Changes:
        if not parts:
            return await changes()
        part = parts.pop(0)
        if part is None:
            raise StoreError("connection", "down")
        return part

    its.changes = failing  # type: ignore[method-assign]
    await purge(store, EVERYTHING)
    for _ in range(3):
        assert A in store.values
        await cache.feed.poll()
    assert A not in store.values


async def test_a_store_that_refuses_deletion_is_reported(
    store: DictStore, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    its = store_of(cache)
    asked = cache.now
    await purge(store, EVERYTHING, A)
    await cache.write({A: record(2.0)}, overwrite=True, asked=asked)
    await written(cache)
    its.write_failure = StoreError("refused", "NOPERM")
    await cache.feed.poll()
    assert "1 entries that were purged were stored again, and can't be deleted (NOPERM)" in caplog.text
    caplog.clear()
    await cache.feed.poll()
    assert not caplog.text


async def test_what_is_purged_while_the_store_can_not_be_read_yet_concerns_calls_under_way(store: DictStore) -> None:
    """The first poll that succeeds is not at the start of the process then."""
    its = store.of_another_process()
    cache = make_cache(its)
    its.failure = StoreError("connection", "down")
    await cache.feed.poll()
    asked = cache.now
    its.failure = None
    await purge(store, EVERYTHING, A)
    await cache.feed.poll()
    await cache.write({A: record(2.0)}, overwrite=False, asked=asked)
    await written(cache)
    assert await look_up(cache, A) == {}
    assert not store.values
    await cache.aclose()


async def test_what_was_purged_before_a_process_began_does_not_concern_it(store: DictStore) -> None:
    await purge(store, EVERYTHING, A)
    fresh = make_cache(store.of_another_process())
    asked = fresh.now
    await fresh.probe_store()  # as at its start
    await fresh.write({A: record(2.0)}, overwrite=False, asked=asked)
    await written(fresh)
    await fresh.feed.poll()
    assert await look_up(fresh, A) == {A: TWO}
    assert A in store.values


async def test_nobody_joins_a_flight_from_before_a_purge() -> None:
    flights: Flights[str] = Flights()
    old = flights.claim([A, B])
    flights.detach(lambda key: key == A)
    new = flights.claim([A, B])
    assert (list(new.mine), new.joined) == ([A], [B])
    old.settle({A: "old"})
    old.settle({B: "old"})
    assert not new.mine[A].done()
    assert flights.claim([A]).joined == [A]
    new.settle({A: "new"})
    await asyncio.wait_for(new.wait(), 5.0)
    assert [new.flights[key].result() for key in (A, B)] == ["new", "old"]
    assert len(flights) == 0


async def test_recent_writes_are_bounded(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    monkeypatch.setattr("proxy.cache.recent_writes._MAX_KEYS", 3)
    recent = RecentWrites()
    entries = cache.peek([A], min_stored_at_s=0)
    writes = [RecentWrite(cache.now, entries) for _ in range(5)]
    for write in writes:
        recent.add(write)
    taken = recent.take()
    assert taken == writes[2:]
    recent.put_back(taken)
    recent.add(writes[0])
    assert recent.take() == [*writes[3:], writes[0]]
