"""Reads of one turn are one, and so is what is asked for while the store has enough reads to do."""

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.entry import Entry
from proxy.cache.shared_reads import SharedReads
from tests.support.dict_store import key_of, opened, record

MAX_KEYS = 10


def keys(*numbers: int) -> list[bytes]:
    return [key_of(number) for number in numbers]


class Reading:
    """A store in two parts, of the keys below 100 and of the others. It has an entry for each even key. A read waits
    for the gate of its part."""

    def __init__(self, *, max_reads: int = 1) -> None:
        self.asked: list[list[int]] = []
        self.before: list[set[int]] = []
        self.since_s: list[float] = []
        self.gates = [opened(), opened()]
        self.failure: Exception | None = None
        self.reads = SharedReads(self.read, parts=self.parts, max_keys=MAX_KEYS, max_reads=max_reads)

    def parts(self, asked: Sequence[bytes]) -> Mapping[Hashable, Sequence[bytes]]:
        parts: dict[Hashable, list[bytes]] = {}
        for key in asked:
            parts.setdefault(_number(key) // 100, []).append(key)
        return parts

    async def read(self, asked: Sequence[bytes], before: Mapping[bytes, Entry], since_s: float) -> dict[bytes, Entry]:
        self.asked.append([_number(key) for key in asked])
        self.before.append({_number(key) for key in before})
        self.since_s.append(since_s)
        await self.gates[_number(asked[0]) // 100].wait()
        if self.failure is not None:
            raise self.failure
        return {key: Entry.of(record(_number(key))) for key in asked if not _number(key) % 2}

    async def get(self, *numbers: int) -> list[int]:
        return [_number(key) for key in await self.reads.read(keys(*numbers), {})]


def _number(key: bytes) -> int:
    return int.from_bytes(key, "big")


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_reads_of_one_turn_are_one_and_each_gets_its_own() -> None:
    reading = Reading()
    assert await asyncio.gather(*(reading.get(*its) for its in ((1, 2), (2, 4), (5,)))) == [[2], [2, 4], []]
    assert reading.asked == [[1, 2, 4, 5]]


async def test_what_is_asked_for_during_a_read_is_read_together_next() -> None:
    reading = Reading()
    reading.gates[0].clear()
    first = asyncio.create_task(reading.get(2))
    await turns()
    began_s = asyncio.get_running_loop().time()
    others = [asyncio.create_task(reading.get(number)) for number in (4, 6)]
    await turns()
    assert reading.asked == [[2]]
    reading.gates[0].set()
    assert await asyncio.gather(first, *others) == [[2], [4], [6]]
    assert reading.asked == [[2], [4, 6]]
    ended_s = asyncio.get_running_loop().time()
    assert reading.since_s[0] <= began_s <= reading.since_s[1] <= ended_s  # when it was asked for, not when it began


async def test_as_many_reads_are_under_way_as_the_store_works_on() -> None:
    reading = Reading(max_reads=2)
    reading.gates[0].clear()
    tasks = []
    for number in range(0, 8, 2):
        tasks.append(asyncio.create_task(reading.get(number)))
        await turns()
    assert reading.asked == [[0], [2]]
    reading.gates[0].set()
    assert await asyncio.gather(*tasks) == [[0], [2], [4], [6]]
    assert reading.asked == [[0], [2], [4, 6]]


async def test_a_read_takes_no_more_keys_than_it_may() -> None:
    reading = Reading(max_reads=100)
    asked = [range(start, start + 4) for start in range(0, 20, 4)]
    assert await asyncio.gather(*(reading.get(*its) for its in asked)) == [[its[0], its[2]] for its in asked]
    assert [len(its) for its in reading.asked] == [8, 8, 4]


async def test_no_request_waits_for_a_part_of_the_store_that_has_none_of_its_keys() -> None:
    reading = Reading()
    reading.gates[1].clear()
    both = asyncio.create_task(reading.get(2, 100, 4, 102))
    alone = asyncio.create_task(reading.get(6))
    assert await alone == [6]
    await turns()
    assert not both.done()
    reading.gates[1].set()
    assert await both == [2, 100, 4, 102]
    assert reading.asked == [[2, 4, 6], [100, 102]]
    assert not reading.reads._queues  # servers come and go


async def test_a_request_that_stops_waiting_stops_nothing() -> None:
    reading = Reading()
    reading.gates[0].clear()
    patient, cancelled = (asyncio.create_task(reading.get(2, 4)) for _ in range(2))
    await turns()
    cancelled.cancel()
    with suppress(asyncio.CancelledError):
        await cancelled
    reading.gates[0].set()
    assert await patient == [2, 4]


async def test_the_entries_of_all_are_passed_on_and_the_earliest_counts() -> None:
    first, later = Entry.of(record(1.0)), Entry.of(record(2.0))
    seen: list[Mapping[bytes, Entry]] = []

    async def read(_: Sequence[bytes], before: Mapping[bytes, Entry], since_s: float) -> dict[bytes, Entry]:
        seen.append(before)
        return {}

    reads = SharedReads(read, parts=lambda asked: {None: asked}, max_keys=MAX_KEYS, max_reads=1)
    one, two = keys(1, 2)
    given: list[dict[bytes, Entry]] = [{}, {one: first}, {one: later, two: later}]
    await asyncio.gather(*(reads.read([one, two], before) for before in given))
    assert seen == [{one: first, two: later}]
    assert seen[0][one] is first


async def test_an_unexpected_error_is_logged_and_finds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    reading = Reading()
    reading.failure = RuntimeError("a defect")
    assert not any(await asyncio.gather(reading.get(2), reading.get(4)))
    assert [str(entry.exc_info[1]) for entry in caplog.records if entry.exc_info] == ["a defect"]
    reading.failure = None
    assert await reading.get(2) == [2]


async def test_what_waits_at_the_end_gets_nothing() -> None:
    reading = Reading()
    reading.gates[0].clear()
    under_way = asyncio.create_task(reading.get(2))
    await turns()
    waits = asyncio.create_task(reading.get(4))
    not_begun = asyncio.create_task(reading.get(102))
    await asyncio.sleep(0)  # its read is a task that has not run yet
    await reading.reads.aclose()
    assert not any(await asyncio.gather(under_way, waits, not_begun))


@given(
    asked=st.lists(st.lists(st.integers(0, 199), unique=True, max_size=MAX_KEYS), max_size=12),
    pauses=st.lists(st.integers(0, 3), max_size=12),
    max_reads=st.integers(1, 3),
)
def test_each_gets_all_of_its_own_however_they_meet(asked: list[list[int]], pauses: list[int], max_reads: int) -> None:
    async def check() -> None:
        reading = Reading(max_reads=max_reads)
        tasks = []
        for its, pause in zip(asked, pauses + [0] * len(asked), strict=False):
            tasks.append(asyncio.create_task(reading.get(*its)))
            await turns(pause)
        assert await asyncio.gather(*tasks) == [[number for number in its if not number % 2] for its in asked]
        assert all(len(its) <= MAX_KEYS and len({number // 100 for number in its}) == 1 for its in reading.asked)

    asyncio.run(check())
