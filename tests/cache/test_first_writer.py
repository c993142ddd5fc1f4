"""Every process ends up serving the first record that the store has, however late the store replies."""

import asyncio

import pytest
from redis.asyncio import Redis

from proxy.cache.entry import Entry
from proxy.cache.redis.store import RedisStore
from proxy.errors import StoreError
from proxy.protocol import records
from proxy.telemetry.metrics import Metrics
from tests.conftest import StartProxy
from tests.support.dict_store import A, Clock, DictStore, ExpiringStore, look_up, make_cache, record, served, written
from tests.support.gate import Gate
from tests.support.redis_server import RedisServer
from tests.support.scripted import ScriptedUpstream

FIRST, SECOND = b"[1.0,0.5]", b"[2.0,0.5]"
HOUR_S = 3600.0


# --- a store that replies late


@pytest.mark.parametrize("late", ["writes", "replies"])
async def test_two_caches_over_one_slow_store_serve_the_same_bits_in_the_end(late: str) -> None:
    store = DictStore()
    gate: asyncio.Event = getattr(store, late)
    gate.clear()
    first, second = make_cache(store, timeout_s=0.001), make_cache(store, timeout_s=0.001)
    assert served(await first.write({A: record(1.0)}, overwrite=False)) == {A: FIRST}
    assert served(await second.write({A: record(2.0)}, overwrite=False)) == {A: SECOND}  # nobody knows better yet
    gate.set()
    await written(first)
    await written(second)
    for cache in (first, second):
        assert served(cache.peek_confirmed([A], min_stored_at_s=0).found) == {A: FIRST}
    assert records.decode(A, store.values[A]) == record(1.0)


async def test_a_superseded_entry_leads_to_the_winner() -> None:
    store = DictStore()
    store.writes.clear()
    store.values[A] = records.encode(A, record(1.0))
    cache = make_cache(store, timeout_s=0.001)
    held = await cache.write({A: record(2.0)}, overwrite=False)
    assert served(held) == {A: SECOND}
    store.writes.set()
    await written(cache)
    assert held[A].current.numbers() == FIRST


async def test_a_request_that_waits_for_other_items_serves_the_late_winner(
    start_proxy: StartProxy, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DictStore()
    monkeypatch.setattr("proxy.app.storage.open_store", lambda *_: store)
    numbers = iter([1.0, 2.0, 3.0])
    gate = Gate(upstream)

    def embed(call: object) -> object:
        number = next(numbers)
        return upstream.embed(call, data=[{"index": 0, "embedding": [number] * 16}])  # type: ignore[arg-type]

    gate.answer = embed  # type: ignore[assignment]
    first, second = [await start_proxy(store_timeout_s=0.001, max_batch_items=1) for _ in range(2)]
    store.writes.clear()
    slow = asyncio.Event()
    gate.open()
    assert (await first.embed("x")).vectors == [[1.0] * 16]

    async def respond(call: object) -> object:
        if "slow" in call.items:  # type: ignore[attr-defined]
            await slow.wait()
        return embed(call)

    upstream.reply = respond  # type: ignore[assignment]
    waiting = asyncio.create_task(second.embed(["x", "slow"]))
    while not second.proxy.cache._writer.pending:  # until its own vector of x was handed out
        await asyncio.sleep(0)
    store.writes.set()
    await written(second.proxy.cache)
    slow.set()
    assert (await waiting).vectors == [[1.0] * 16, [3.0] * 16]


async def test_a_late_reply_does_not_undo_a_refresh() -> None:
    store = DictStore()
    store.replies.clear()
    cache = make_cache(store, timeout_s=0.001)
    await cache.write({A: record(1.0)}, overwrite=False)
    await cache.write({A: record(2.0)}, overwrite=True)
    store.replies.set()
    await written(cache)
    assert await look_up(cache, A) == {A: SECOND}
    assert served(cache.peek_confirmed([A], min_stored_at_s=0).found) == {A: SECOND}


async def test_an_item_is_a_hit_during_its_write_even_if_memory_has_no_room() -> None:
    store = DictStore()
    store.writes.clear()
    cache = make_cache(store, timeout_s=0.001, memory_bytes=1)
    await cache.write({A: record(1.0)}, overwrite=False)
    assert cache.memory.entries == 0
    assert served(cache.peek([A], min_stored_at_s=0)) == {A: FIRST}
    store.writes.set()
    await written(cache)
    assert await look_up(cache, A) == {A: FIRST}


async def test_a_request_for_an_item_waits_for_its_unfinished_write() -> None:
    store = DictStore()
    store.writes.clear()
    store.values[A] = records.encode(A, record(1.0))
    cache = make_cache(store, timeout_s=0.001)
    assert served(await cache.write({A: record(2.0)}, overwrite=False)) == {A: SECOND}
    cache._store._timeout_s = 60.0
    asking = asyncio.create_task(look_up(cache, A))
    await asyncio.sleep(0)
    store.writes.set()
    assert await asking == {A: FIRST}


# --- a store that was down


async def test_after_an_outage_a_record_of_another_replica_supersedes_an_unstored_one() -> None:
    store = DictStore()
    cache, other = make_cache(store), make_cache(store)
    store.write_failure = StoreError("connection", "down")
    await cache.write({A: record(1.0)}, overwrite=False)
    store.write_failure = None
    await other.write({A: record(2.0)}, overwrite=False)
    for _ in range(2):
        assert await look_up(cache, A) == {A: SECOND}


async def test_after_an_outage_an_unstored_item_is_written_at_its_next_request() -> None:
    store, metrics = DictStore(), Metrics()
    cache = make_cache(store, metrics=metrics)
    store.write_failure = StoreError("connection", "down")
    await cache.write({A: record(1.0)}, overwrite=False)
    assert not store.values
    assert metrics.store_unstored_items.labels("connection").value == 1
    store.write_failure = None
    assert await look_up(cache, A) == {A: FIRST}
    await written(cache)
    assert records.decode(A, store.values[A]) == record(1.0)
    budgets = len(store.timeouts_s)
    assert await look_up(cache, A) == {A: FIRST}
    assert len(store.timeouts_s) == budgets  # it is confirmed: the store is not asked again


async def test_after_an_outage_an_unstored_refresh_replaces_the_stores_record() -> None:
    store = DictStore()
    cache = make_cache(store)
    await cache.write({A: record(1.0, at=1000)}, overwrite=False)
    store.write_failure = StoreError("refused", "read only")
    await cache.write({A: record(2.0, at=2000)}, overwrite=True)
    store.write_failure = None
    assert await look_up(cache, A) == {A: SECOND}
    await written(cache)
    assert await look_up(make_cache(store), A) == {A: SECOND}


async def test_while_the_circuit_is_open_memory_serves_without_a_read() -> None:
    store = DictStore()
    store.failure = StoreError("connection", "down")
    cache = make_cache(store)
    for _ in range(5):
        await cache.write({A: record(1.0)}, overwrite=False)
    assert served(cache.peek_confirmed([A], min_stored_at_s=0).found) == {A: FIRST}
    assert not store.timeouts_s


async def test_two_caches_that_replace_one_damaged_record_agree_on_the_next_request() -> None:
    store = DictStore()
    store.values[A] = b"damaged"
    caches = [make_cache(store), make_cache(store)]
    store.replies.clear()  # both learn of the damage before either has replaced it
    writing = [
        asyncio.create_task(cache.write({A: record(number)}, overwrite=False))
        for cache, number in zip(caches, (1.0, 2.0), strict=True)
    ]
    for _ in range(5):
        await asyncio.sleep(0)
    store.replies.set()
    await asyncio.gather(*writing)
    stands = {A: Entry.of(records.decode(A, store.values[A])).numbers()}
    assert [await look_up(cache, A) for cache in caches] == [stands, stands]


# --- clocks that differ


@pytest.mark.parametrize("skew_s", [-HOUR_S, HOUR_S])
async def test_with_clocks_an_hour_apart_and_a_shorter_ttl_the_first_writer_wins(skew_s: float) -> None:
    store = ExpiringStore()
    clock, skewed = Clock(), Clock()
    skewed.now += skew_s
    first, second = make_cache(store, clock, ttl_s=1800), make_cache(store, skewed, ttl_s=1800)
    await first.write({A: record(1.0, at=clock.now)}, overwrite=False)
    stored = store.values[A]
    assert await look_up(second, A) == {A: FIRST}
    third = make_cache(store, skewed, ttl_s=1800)
    assert served(await third.write({A: record(2.0, at=skewed.now)}, overwrite=False)) == {A: FIRST}
    assert store.values[A] == stored
    # Once the store has dropped it, everybody does, at the latest a TTL after it was read.
    del store.values[A]
    clock.now += 1801
    skewed.now += 1801
    for cache in (first, second, third):
        assert await look_up(cache, A) == {}


@pytest.mark.parametrize("skew_s", [-HOUR_S, HOUR_S])
async def test_with_clocks_an_hour_apart_replicas_of_one_redis_have_one_vector(
    redis_server: RedisServer, skew_s: float
) -> None:
    async with Redis.from_url(redis_server.url) as admin:
        await admin.flushall()
    clock, skewed = Clock(), Clock()
    skewed.now += skew_s
    stores = [RedisStore(redis_server.url, timeout_s=5.0, max_connections=2) for _ in range(2)]
    first, second = (make_cache(store, at, ttl_s=1800) for store, at in zip(stores, (clock, skewed), strict=True))
    await first.write({A: record(1.0, at=clock.now)}, overwrite=False)
    assert served(await second.write({A: record(2.0, at=skewed.now)}, overwrite=False)) == {A: FIRST}
    for cache in (first, second):
        assert await look_up(cache, A) == {A: FIRST}
        await cache.aclose()


async def test_a_record_from_before_the_ttl_was_set_is_replaced_though_the_store_keeps_it() -> None:
    store, clock = ExpiringStore(), Clock()
    await make_cache(store, clock).write({A: record(1.0, at=clock.now - 48 * HOUR_S)}, overwrite=False)
    cache = make_cache(store, clock, ttl_s=1800)
    assert await look_up(cache, A) == {}
    assert served(await cache.write({A: record(2.0, at=clock.now)}, overwrite=False)) == {A: SECOND}


async def test_a_record_dated_days_ahead_expires() -> None:
    store, clock = DictStore(), Clock()
    await make_cache(store, clock).write({A: record(1.0, at=clock.now + 1000 * HOUR_S)}, overwrite=False)
    cache = make_cache(store, clock, ttl_s=1800)
    assert await look_up(cache, A) == {}
    assert served(await cache.write({A: record(2.0, at=clock.now)}, overwrite=False)) == {A: SECOND}
    assert await look_up(make_cache(store, clock, ttl_s=1800), A) == {A: SECOND}
