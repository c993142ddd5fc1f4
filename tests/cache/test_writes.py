"""Computed items are stored: upstream calls wait for a slow store, and unstored items are counted and logged."""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from proxy.cache.backlog import Backlog
from proxy.cache.codec import RecordCodec
from proxy.cache.entry import Entry
from proxy.cache.unstored import Unstored
from proxy.config.settings import StoreSetting
from proxy.errors import StoreError
from proxy.protocol.records import Record
from proxy.telemetry.metrics import Metrics
from proxy.turns import FEW_KEYS, KEYS_A_TURN
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.dict_store import A, B, DictStore, key_of, look_up, make_cache, record, served, written
from tests.support.scripted import ScriptedUpstream


@pytest.mark.long
async def test_twenty_batches_of_2048_items_at_once_are_all_stored(
    start_proxy: StartProxy, upstream: ScriptedUpstream, sqlite_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bound that short vectors exceed as far as 1536-d vectors the real one."""
    monkeypatch.setattr("proxy.cache.guarded._MAX_PENDING_BYTES", 1024**2)
    upstream.dimensions = 2
    client = await start_proxy(store=StoreSetting(path=sqlite_path), store_timeout_s=0.05)
    batches = [[f"{batch}-{number}" for number in range(2048)] for batch in range(20)]
    responses = await asyncio.gather(*(client.embed(texts) for texts in batches))
    assert {response.status for response in responses} == {200}
    await written(client.proxy.cache)
    with sqlite3.connect(sqlite_path) as connection:
        assert connection.execute("SELECT count(*) FROM slot").fetchone() == (20 * 2048,)
    connection.close()
    assert sum(upstream.items.values()) == 20 * 2048
    assert await client.metric("embedding_proxy_store_unstored_items_total") == 0


async def test_many_records_are_encoded_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    store = DictStore()
    cache = make_cache(store)
    sizes: list[int] = []
    encode = RecordCodec.encode

    def count(codec: RecordCodec, fresh: Mapping[bytes, Record]) -> dict[bytes, bytes]:
        sizes.append(len(fresh))
        return encode(codec, fresh)

    monkeypatch.setattr(RecordCodec, "encode", count)
    keys = [key_of(number) for number in range(2 * KEYS_A_TURN + 1)]
    await cache.write({key: record(1.0) for key in keys}, overwrite=False)
    await written(cache)
    assert sizes == [KEYS_A_TURN, KEYS_A_TURN, 1]
    assert list(store.values) == keys
    await cache.aclose()


async def test_many_records_that_the_store_had_are_adopted_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    store = DictStore()
    first, second = make_cache(store), make_cache(store)
    keys = [key_of(number) for number in range(2 * KEYS_A_TURN + 1)]
    await first.write({key: record(1.0) for key in keys}, overwrite=False)
    sizes: list[int] = []
    decode = RecordCodec.decode

    def count(codec: RecordCodec, values: Mapping[bytes, bytes]) -> dict[bytes, Entry]:
        sizes.append(len(values))
        return decode(codec, values)

    monkeypatch.setattr(RecordCodec, "decode", count)
    kept = await second.write({key: record(2.0) for key in keys}, overwrite=False)
    await written(second)
    assert sizes == [KEYS_A_TURN, KEYS_A_TURN, 1]
    assert {key: entry.record() for key, entry in kept.items()} == {key: record(1.0) for key in keys}
    for cache in (first, second):
        await cache.aclose()


async def test_entries_whose_write_takes_long_come_into_memory_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    store = DictStore()
    cache = make_cache(store, timeout_s=0.0)
    store.replies.clear()
    keys = [key_of(number) for number in range(2 * FEW_KEYS + 1)]
    monkeypatch.setattr("proxy.cache.guarded._TIMEOUT_PER_KEY_S", 0.0)
    in_memory: set[int] = set()

    async def look() -> None:
        while True:
            await asyncio.sleep(0)
            in_memory.add(len(cache.peek(keys, min_stored_at_s=0)))

    looking = asyncio.create_task(look())
    entries = await cache.write({key: record(1.0) for key in keys}, overwrite=False)
    looking.cancel()
    assert in_memory == {0, FEW_KEYS, 2 * FEW_KEYS}
    assert cache.peek(keys, min_stored_at_s=0) == entries
    assert cache._writer.pending.keys() == entries.keys()
    store.replies.set()
    await written(cache)
    assert not cache._writer.pending
    assert cache.peek_confirmed(keys, min_stored_at_s=0).found == entries
    await cache.aclose()


async def test_the_next_upstream_call_waits_until_the_store_has_written(
    start_proxy: StartProxy, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, store = await slow_proxy(start_proxy, monkeypatch, stall_s=60.0)
    store.writes.clear()
    assert (await client.embed("x")).status == 200
    assert await client.metric("embedding_proxy_store_pending_write_bytes") > 0
    asked = asyncio.create_task(client.embed("y"))
    await until(lambda: client.proxy.fetcher._batcher._queue.items == 1)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(upstream.calls) == 1
    assert (await client.embed("x")).cache == "HIT"  # what needs no call does not wait
    store.writes.set()
    assert (await asked).status == 200
    await written(client.proxy.cache)
    assert len(store.values) == 2
    assert await client.metric("embedding_proxy_store_pending_write_bytes") == 0


async def test_calls_do_not_wait_for_a_hanging_store_and_unstored_items_are_counted(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, store = await slow_proxy(start_proxy, monkeypatch, stall_s=0.01)
    store.writes.clear()
    for number in range(5):
        assert (await client.embed(f"text {number}")).status == 200
    assert await client.metric("embedding_proxy_store_unstored_items_total", reason="busy") == 4
    assert "items not stored: 1 (busy)" in caplog.text
    store.writes.set()
    await written(client.proxy.cache)
    for number in range(5):
        assert (await client.embed(f"text {number}")).cache == "HIT"
    await written(client.proxy.cache)
    assert len(store.values) == 5  # asked for again, they are stored after all
    assert len(upstream.calls) == 5


async def slow_proxy(
    start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, *, stall_s: float
) -> tuple[Client, DictStore]:
    """A proxy whose calls wait for any write that is under way, and its store."""
    store = DictStore()
    monkeypatch.setattr("proxy.cache.guarded._MAX_PENDING_BYTES", 0)
    monkeypatch.setattr("proxy.cache.guarded._STALL_S", stall_s)
    monkeypatch.setattr("proxy.app.storage.open_store", lambda *_: store)
    return await start_proxy(store_timeout_s=0.001), store


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)


async def test_a_write_refused_by_a_full_backlog_counts_as_a_write_and_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.cache.guarded._MAX_PENDING_BYTES", 0)
    monkeypatch.setattr("proxy.cache.guarded._STALL_S", 0.0)
    metrics, store = Metrics(), DictStore()
    cache = make_cache(store, metrics=metrics, timeout_s=0.001)
    store.writes.clear()
    await cache.write({A: record()}, overwrite=False)
    await cache.room()
    assert served(await cache.write({B: record(2.0)}, overwrite=False)) == {B: b"[2.0,0.5]"}
    (writes,) = (
        sample.value
        for family in metrics.families()
        for sample in family.samples
        if sample.name == "embedding_proxy_store_duration_seconds_count" and sample.labels["operation"] == "write"
    )
    assert (metrics.store_errors.labels("write", "busy").value, writes) == (1, 1)
    store.writes.set()
    await cache.aclose()


async def test_items_unstored_at_exit_are_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics, store = Metrics(), DictStore()
    cache = make_cache(store, metrics=metrics, timeout_s=0.001)
    store.writes.clear()
    await cache.write({A: record(), B: record()}, overwrite=False)
    closing = asyncio.create_task(cache.aclose())
    await asyncio.sleep(0)
    closing.cancel()  # its time is over
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert metrics.store_unstored_items.labels("stopped").value == 2
    assert "items not stored: 2 (stopped)" in caplog.text


async def test_a_probe_that_is_cancelled_before_it_begins_lets_the_next_write_probe() -> None:
    store = DictStore()
    cache = make_cache(store)
    store.write_failure = StoreError("refused", "full")
    for _ in range(5):
        await cache.write({A: record()}, overwrite=False)
    store.write_failure = None
    breaker = cache._store._breakers["write"]
    breaker._cooled_at_s = 0.0  # the clock has gone on
    writing = asyncio.create_task(cache.write({A: record()}, overwrite=False))
    await asyncio.sleep(0)
    assert breaker.state.value == "half-open"
    cache._writer.tasks.cancel()
    await writing
    assert not store.values
    await cache.write({A: record()}, overwrite=False)
    assert set(store.values) == {A}
    assert breaker.state.value == "closed"


async def test_items_unstored_by_an_open_circuit_are_counted_once() -> None:
    metrics, store = Metrics(), DictStore()
    cache = make_cache(store, metrics=metrics)
    store.write_failure = StoreError("refused", "full")
    for number in range(8):
        await cache.write({bytes([number]) * 32: record()}, overwrite=False)
    for _ in range(3):
        await look_up(cache, A)
    counted = {reason: metrics.store_unstored_items.labels(reason).value for reason in ("refused", "open")}
    assert counted == {"refused": 5, "open": 3}


async def test_there_is_room_below_the_bound_and_after_a_write_has_ended() -> None:
    backlog = Backlog(max_bytes=100, stall_s=60.0)
    backlog.began(100)
    await backlog.room()
    backlog.began(100)
    waiting = [asyncio.create_task(backlog.room()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    backlog.ended(50)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    backlog.ended(50)
    await asyncio.gather(*waiting)
    assert not backlog.refuses


async def test_a_write_that_ends_shows_that_the_store_does_not_hang() -> None:
    backlog = Backlog(max_bytes=0, stall_s=0.0)
    backlog.began(1)
    backlog.began(1)
    await backlog.room()
    assert backlog.refuses
    backlog.ended(1)
    assert not backlog.refuses


def test_items_that_are_not_stored_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    metrics, now_s = Metrics(), 0.0
    unstored = Unstored(metrics, clock=lambda: now_s)
    for now_s in range(0, 130, 10):  # noqa: B007 - the clock reads it
        unstored.add(1, "open")
        unstored.add(10, "timeout")
    unstored.flush()
    unstored.flush()
    said = [line.getMessage().partition(": ")[2] for line in caplog.records]
    assert said == ["1 (open)", *2 * ["60 (timeout), 6 (open)"], "10 (timeout)"]
    assert metrics.store_unstored_items.labels("timeout").value == 130
