import asyncio

import pytest

from proxy.cache.store import NoStore
from proxy.errors import StoreError
from proxy.protocol import records
from proxy.telemetry.metrics import Metrics
from tests.support import proxy_log
from tests.support.dict_store import A, B, C, Clock, DictStore, make_cache, record, served, written
from tests.support.virtual_loop import virtually


@virtually
async def test_a_large_read_has_more_time_than_a_small_one() -> None:
    store = DictStore()
    cache = make_cache(store, timeout_s=0.05)
    for count in (1, 1024):
        await cache.read([number.to_bytes(32, "big") for number in range(count)], min_stored_at_s=0)
    # A quarter of a millisecond a key, on top.
    assert store.timeouts_s == pytest.approx([0.05025, 0.306])


async def test_a_write_goes_to_memory_and_to_the_store() -> None:
    store = DictStore()
    cache = make_cache(store)
    await cache.write({A: record(1.0), B: record(2.0)}, overwrite=False)
    assert served(cache.peek([A, B, C], min_stored_at_s=0)) == {A: b"[1.0,0.5]", B: b"[2.0,0.5]"}
    assert served(await make_cache(store).read([A, B, C], min_stored_at_s=0)) == {A: b"[1.0,0.5]", B: b"[2.0,0.5]"}


async def test_a_read_from_the_store_goes_to_memory() -> None:
    store = DictStore()
    await make_cache(store).write({A: record()}, overwrite=False)
    cache = make_cache(store)
    assert cache.peek([A], min_stored_at_s=0) == {}
    await cache.read([A], min_stored_at_s=0)
    assert set(cache.peek([A], min_stored_at_s=0)) == {A}


async def test_the_first_writer_wins_and_the_loser_serves_the_winner() -> None:
    store = DictStore()
    await make_cache(store).write({A: record(1.0)}, overwrite=False)
    loser = make_cache(store)
    assert served(await loser.write({A: record(2.0)}, overwrite=False)) == {A: b"[1.0,0.5]"}
    assert served(loser.peek([A], min_stored_at_s=0)) == {A: b"[1.0,0.5]"}


async def test_without_a_store_the_first_entry_in_memory_wins() -> None:
    cache = make_cache(NoStore())
    await cache.write({A: record(1.0)}, overwrite=False)
    assert served(await cache.write({A: record(2.0)}, overwrite=False)) == {A: b"[1.0,0.5]"}


async def test_a_slow_read_does_not_undo_a_refresh() -> None:
    store = DictStore()
    await make_cache(store).write({A: record(1.0, at=1000)}, overwrite=False)
    cache = make_cache(store)
    store.failure = StoreError("refused", "read only")
    await cache.write({A: record(2.0, at=2000)}, overwrite=True)
    store.failure = None
    assert served(await cache.read([A], min_stored_at_s=0)) == {A: b"[2.0,0.5]"}
    assert served(cache.peek([A], min_stored_at_s=0)) == {A: b"[2.0,0.5]"}


async def test_a_refresh_replaces() -> None:
    store = DictStore()
    await make_cache(store).write({A: record(1.0)}, overwrite=False)
    cache = make_cache(store)
    assert served(await cache.write({A: record(2.0)}, overwrite=True)) == {A: b"[2.0,0.5]"}
    assert served(await make_cache(store).read([A], min_stored_at_s=0)) == {A: b"[2.0,0.5]"}


async def test_an_entry_past_its_ttl_is_a_miss_and_is_replaced() -> None:
    store, clock = DictStore(), Clock()
    cache = make_cache(store, clock, ttl_s=60)
    await cache.write({A: record(1.0)}, overwrite=False)
    clock.now += 61
    min_stored_at_s = cache.freshness_cutoff_s(None)
    assert cache.peek([A], min_stored_at_s=min_stored_at_s) == {}
    assert await cache.read([A], min_stored_at_s=min_stored_at_s) == {}
    assert served(await cache.write({A: record(2.0, at=clock.now)}, overwrite=False)) == {A: b"[2.0,0.5]"}
    assert records.decode(A, store.values[A]).stored_at_s == int(clock.now)


def test_the_stricter_of_ttl_and_max_age_counts() -> None:
    assert make_cache(NoStore()).freshness_cutoff_s(None) == 0
    assert make_cache(NoStore(), ttl_s=60).freshness_cutoff_s(10) == Clock.now - 10
    assert make_cache(NoStore(), ttl_s=60).freshness_cutoff_s(100) == Clock.now - 60


@pytest.mark.parametrize("damage", [b"", b"foreign", b"\0" * 200])
async def test_a_damaged_record_is_a_miss_and_is_replaced(damage: bytes) -> None:
    store = DictStore()
    store.values[A] = damage
    cache = make_cache(store)
    assert await cache.read([A], min_stored_at_s=0) == {}
    assert served(await cache.write({A: record(2.0)}, overwrite=False)) == {A: b"[2.0,0.5]"}
    assert records.decode(A, store.values[A]) == record(2.0)


async def test_a_record_moved_to_another_key_is_a_miss() -> None:
    store = DictStore()
    cache = make_cache(store)
    await cache.write({A: record()}, overwrite=False)
    store.values[B] = store.values[A]
    assert await cache.read([B], min_stored_at_s=0) == {}


async def test_a_failing_store_loses_hits_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    store = DictStore()
    store.failure = StoreError("connection", "refused")
    cache = make_cache(store)
    for _ in range(20):
        assert await cache.read([A], min_stored_at_s=0) == {}
        await cache.write({B: record()}, overwrite=False)
        await asyncio.sleep(0)  # the writing goes on by itself
    assert served(await cache.write({A: record()}, overwrite=False)) == {A: b"[1.0,0.5]"}
    assert served(cache.peek([A], min_stored_at_s=0)) == {A: b"[1.0,0.5]"}
    assert proxy_log.messages(caplog) == [
        "items not stored: 1 (connection)",
        "circuit open for store reads (connection: refused); probing every 1 s",
        "circuit open for store writes (connection: refused); probing every 1 s",
    ]


async def test_values_found_before_a_store_failed_are_served() -> None:
    store = DictStore()
    store.failure = StoreError("timeout", "half of it", found={A: records.encode(A, record())}, is_partial=True)
    assert set(await make_cache(store).read([A, B], min_stored_at_s=0)) == {A}


@pytest.mark.parametrize("is_partial", [True, False])
async def test_one_failing_node_of_several_does_not_open_the_circuit(is_partial: bool) -> None:
    store = DictStore()
    cache = make_cache(store)
    store.failure = StoreError("connection", "one of them is down", is_partial=is_partial)
    for _ in range(10):
        assert await cache.read([A], min_stored_at_s=0) == {}
        await cache.write({A: record()}, overwrite=False)
    store.failure = None
    store.values[B] = records.encode(B, record())
    assert set(await cache.read([B], min_stored_at_s=0)) == ({B} if is_partial else set())


async def test_waiting_for_a_hanging_store_ends_with_the_timeout() -> None:
    store = DictStore()
    store.gate.clear()
    cache = make_cache(store, timeout_s=0.01)
    assert await cache.read([A], min_stored_at_s=0) == {}
    assert served(await cache.write({A: record()}, overwrite=False)) == {A: b"[1.0,0.5]"}
    store.gate.set()
    await cache.aclose()
    assert set(store.values) == {A}, "the write that nobody waits for is finished all the same"


# --- what is counted


async def test_an_invalid_record_is_counted_once_until_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.cache.invalid._MAX_KEYS", 2)
    store, metrics = DictStore(), Metrics()
    cache = make_cache(store, metrics=metrics)
    counted = metrics.store_invalid_records.labels("checksum")
    store.values = dict.fromkeys((A, B), b"damaged")
    for _ in range(3):
        assert await cache.read([A, B], min_stored_at_s=0) == {}
    assert counted.value == 2
    await cache.write({A: record()}, overwrite=False)  # finds it taken, and replaces what is there
    assert counted.value == 2
    for count in (3, 4):  # the read replaces it again
        store.values[A] = b"damaged again"
        await cache.read([A], min_stored_at_s=0)
        await written(cache)
        assert counted.value == count
    store.values[A] = records.encode(A, record())  # by another proxy
    await cache.read([A], min_stored_at_s=0)
    store.values[A] = b"damaged a third time"
    await cache.read([A], min_stored_at_s=0)
    assert counted.value == 5
    store.values[C] = b"damaged"
    await cache.read([C], min_stored_at_s=0)
    assert counted.value == 6
    await cache.read([B], min_stored_at_s=0)
    assert counted.value == 7  # of more keys than are remembered the oldest are counted again
    await cache.aclose()


async def test_what_a_peek_leaves_out_is_superseded_by_the_read_after_it_or_stored_again() -> None:
    store = DictStore()
    cache = make_cache(store)
    store.failure = StoreError("connection", "down")
    await cache.write({A: record(1.0), B: record(2.0)}, overwrite=False)
    store.failure = None
    store.values[A] = records.encode(A, record(3.0))  # another process was first
    peeked = cache.peek_confirmed([A, B, C], min_stored_at_s=0)
    assert (peeked.found, set(peeked.left_out)) == ({}, {A, B})
    await cache.read([A, B, C], min_stored_at_s=0, left_out=peeked.left_out)
    await written(cache)
    assert served(cache.peek_confirmed([A, B, C], min_stored_at_s=0).found) == {A: b"[3.0,0.5]", B: b"[2.0,0.5]"}
    assert set(store.values) == {A, B}


async def test_an_entry_that_arrives_between_a_peek_and_the_read_is_not_superseded_by_it() -> None:
    store = DictStore()
    cache, other = make_cache(store), make_cache(store)
    peeked = cache.peek_confirmed([A], min_stored_at_s=0)
    assert peeked.found == {}
    await cache.write({A: record(2.0, at=2000)}, overwrite=True)
    await other.write({A: record(3.0, at=3000)}, overwrite=True)
    assert served(await cache.read([A], min_stored_at_s=0, left_out=peeked.left_out)) == {A: b"[2.0,0.5]"}
    assert served(await cache.read([A], min_stored_at_s=0)) == {A: b"[3.0,0.5]"}
