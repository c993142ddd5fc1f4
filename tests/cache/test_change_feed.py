"""What one process replaces in a store, the others stop serving from memory after their next poll."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from proxy import turns
from proxy.cache.cache import Cache
from proxy.cache.change_feed import AGAIN_AFTER_S
from proxy.cache.store import Changes
from proxy.errors import StoreError
from proxy.telemetry.metrics import Metrics
from tests.support.dict_store import A, B, C, DictStore, look_up, make_cache, record, served, written

FIRST, SECOND = b"[1.0,0.5]", b"[2.0,0.5]"


class Monotonic:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def in_memory(cache: Cache, *keys: bytes) -> dict[bytes, bytes]:
    return served(cache.peek_confirmed(keys, min_stored_at_s=0).found)


class Pair:
    """Two processes on one store, which both have the first record of A in memory."""

    def __init__(self) -> None:
        self.clock, self.metrics = Monotonic(), Metrics()
        self.mine = DictStore()
        self.its = self.mine.of_another_process()
        self.one = make_cache(self.mine)
        self.other = make_cache(self.its, monotonic=self.clock, metrics=self.metrics)

    async def fill(self) -> "Pair":
        await self.one.write({A: record(1.0)}, overwrite=False)
        assert await look_up(self.other, A) == {A: FIRST}
        return self

    def discarded(self, reason: str) -> float:
        return self.metrics.memory_discarded.labels(reason).value

    @property
    def age_s(self) -> float | None:
        samples = (sample for family in self.metrics.families() for sample in family.samples)
        return next(sample.value for sample in samples if sample.name == "embedding_proxy_store_changes_age_seconds")


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = await Pair().fill()
    yield pair
    for cache in (pair.one, pair.other):
        await cache.aclose()


async def test_a_refresh_reaches_the_memory_of_another_process_with_its_next_poll(pair: Pair) -> None:
    await pair.one.write({A: record(2.0)}, overwrite=True)
    assert await look_up(pair.other, A) == {A: FIRST}
    await pair.other.feed.poll()
    assert in_memory(pair.other, A) == {}
    assert await look_up(pair.other, A) == in_memory(pair.other, A) == {A: SECOND}
    assert pair.discarded("replaced") == 1


async def test_large_requests_do_not_delay_it(pair: Pair) -> None:
    """Each has a turn before the next of another: of so many requests a poll would wait for hours."""
    await pair.one.write({A: record(2.0)}, overwrite=True)
    keys = [bytes([i, j]) * 16 for i in range(10) for j in range(100)]

    async def changes() -> Changes:
        return Changes(keys=[*keys, A])

    pair.its.changes = changes  # type: ignore[method-assign]
    iterations = 0

    async def large() -> None:
        nonlocal iterations
        while True:
            await turns.turn()
            iterations += 1

    requests = [asyncio.create_task(large()) for _ in range(100)]
    await pair.other.feed.poll()
    for request in requests:
        request.cancel()
    assert in_memory(pair.other, A) == {}
    assert iterations < len(keys)


async def test_what_was_not_replaced_stays_in_memory(pair: Pair) -> None:
    await pair.other.write({B: record(1.0)}, overwrite=False)
    await pair.one.write({A: record(2.0)}, overwrite=True)
    await pair.other.feed.poll()
    assert in_memory(pair.other, A, B) == {B: FIRST}


async def test_a_read_that_began_before_the_discard_brings_nothing_old_into_memory(pair: Pair) -> None:
    pair.other.memory.discard(A)
    read = Delivery(pair.its)
    reading = asyncio.create_task(look_up(pair.other, A))
    await read.has_read.wait()
    await pair.one.write({A: record(2.0)}, overwrite=True)
    await pair.other.feed.poll()
    read.may_return.set()
    assert await reading == {A: FIRST}  # it was asked for before the process could know
    assert in_memory(pair.other, A) == {}
    assert await look_up(pair.other, A) == {A: SECOND}


async def test_a_late_reply_to_a_write_brings_nothing_old_into_memory(pair: Pair) -> None:
    pair.its.replies.clear()
    writing = asyncio.create_task(pair.other.write({A: record(3.0)}, overwrite=False))
    while not pair.other._writer.tasks._tasks:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)  # until it waits for the reply, which is that the first record stands
    pair.other.memory.discard(A)
    await pair.one.write({A: record(2.0)}, overwrite=True)
    await pair.other.feed.poll()
    pair.its.replies.set()
    await writing
    assert await look_up(pair.other, A) == in_memory(pair.other, A) == {A: SECOND}


async def test_an_announcement_without_a_replacement_costs_a_read_and_no_more(pair: Pair) -> None:
    pair.mine.log.append(A)  # and the process died
    await pair.other.feed.poll()
    assert await look_up(pair.other, A) == in_memory(pair.other, A) == {A: FIRST}


async def test_a_replacement_whose_process_died_before_it_announced_its_end_counts_two_seconds_later(
    pair: Pair,
) -> None:
    pair.mine.log.append(A)
    await pair.other.feed.poll()
    assert await look_up(pair.other, A) == {A: FIRST}
    await make_cache(silent(pair.mine)).write({A: record(2.0)}, overwrite=True)
    await pair.other.feed.poll()
    assert await look_up(pair.other, A) == {A: FIRST}
    pair.clock.now_s = AGAIN_AFTER_S
    await pair.other.feed.poll()
    assert await look_up(pair.other, A) == in_memory(pair.other, A) == {A: SECOND}
    assert pair.discarded("again") == 1


def silent(store: DictStore) -> DictStore:
    """The same store, without its log."""
    silent = store.of_another_process()
    silent.log = []
    return silent


async def test_an_entry_on_which_the_store_has_not_decided_stays_until_it_has(pair: Pair) -> None:
    pair.its.writes.clear()
    pair.other._store._timeout_s = 0.001
    await pair.other.write({A: record(3.0)}, overwrite=True)
    await pair.one.write({A: record(2.0)}, overwrite=True)
    await pair.other.feed.poll()
    assert served(pair.other.peek([A], min_stored_at_s=0)) == {A: b"[3.0,0.5]"}
    pair.its.writes.set()
    await written(pair.other)
    assert in_memory(pair.other, A) == {}
    assert await look_up(pair.other, A) == {A: b"[3.0,0.5]"}  # it was written last


async def test_while_the_store_is_down_memory_serves_and_then_catches_up(pair: Pair) -> None:
    pair.its.failure = StoreError("connection", "down")
    await pair.one.write({A: record(2.0)}, overwrite=True)
    pair.clock.now_s = 30.0
    await pair.other.feed.poll()
    assert in_memory(pair.other, A) == {A: FIRST}
    assert pair.age_s == 30.0
    pair.its.failure = None
    await pair.other.feed.poll()
    assert await look_up(pair.other, A) == {A: SECOND}
    assert pair.age_s == 0.0


async def test_after_missed_events_all_is_read_again_but_what_the_store_does_not_have(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    await pair.other.feed.poll()
    pair.its.write_failure = StoreError("connection", "down")
    await pair.other.write({B: record(5.0)}, overwrite=False)
    await pair.other.write({C: record(6.0)}, overwrite=True)
    parts = iter([Changes(is_complete=False, has_more=True), Changes({A})])
    changing(pair.its, lambda: next(parts))
    await pair.other.feed.poll()
    assert in_memory(pair.other, A) == {}
    assert served(pair.other.peek([A, B, C], min_stored_at_s=0)) == {B: b"[5.0,0.5]", C: b"[6.0,0.5]"}
    assert pair.discarded("missed") == 1
    assert "missed some of what was replaced" in caplog.text


async def test_the_log_of_a_process_that_has_just_begun_warns_of_nothing(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    changing(pair.its, lambda: Changes(is_complete=False))
    await pair.other.feed.poll()
    assert in_memory(pair.other, A) == {}
    assert not caplog.text


async def test_an_endless_log_does_not_keep_a_poll_from_ending(pair: Pair) -> None:
    changing(pair.its, lambda: Changes(has_more=True))
    await pair.other.feed.poll()


def changing(store: DictStore, changes: Callable[[], Changes]) -> None:
    async def read() -> Changes:
        return changes()

    store.changes = read  # type: ignore[method-assign]


class Delivery:
    """Holds the values that a store has read."""

    def __init__(self, store: DictStore) -> None:
        self.has_read, self.may_return = asyncio.Event(), asyncio.Event()
        self._get_many = store.get_many
        store.get_many = self.get_many  # type: ignore[method-assign]

    async def get_many(self, *arguments: Any, **options: Any) -> dict[bytes, bytes]:
        found = await self._get_many(*arguments, **options)
        self.has_read.set()
        await self.may_return.wait()
        return found
