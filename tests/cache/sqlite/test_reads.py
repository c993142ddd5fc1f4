"""Reads that start together, or while another one runs, are one."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from threading import Event

import pytest

from proxy.cache.sqlite.file import DatabaseThread
from proxy.cache.sqlite.reads import MergedReads
from proxy.errors import StoreError


def keys(*numbers: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in numbers]


class Selecting:
    """Has a value for each even key. Waits for ``go``, and raises ``failure`` if there is one."""

    def __init__(self, path: Path) -> None:
        self.thread = DatabaseThread("test", path, on_set_aside=lambda _: None)
        self.reads = MergedReads(self.thread, self.select, max_keys=10)
        self.asked: list[list[bytes]] = []
        self.began = Event()
        self.go = Event()
        self.go.set()
        self.failure: Exception | None = None

    def select(self, _: sqlite3.Connection, its: Sequence[bytes]) -> dict[bytes, bytes]:
        self.asked.append(list(its))
        self.began.set()
        self.go.wait()
        if self.failure is not None:
            raise self.failure
        return {key: b"value of " + key for key in its if not key[-1] % 2}

    async def get(self, *numbers: int, timeout_s: float = 60.0) -> list[int]:
        found = await self.reads.get(keys(*numbers), timeout_s=timeout_s)
        assert all(value == b"value of " + key for key, value in found.items())
        return [key[-1] for key in found]


@pytest.fixture
async def selecting(tmp_path: Path) -> AsyncIterator[Selecting]:
    selecting = Selecting(tmp_path / "cache.db")
    yield selecting
    selecting.go.set()
    await selecting.thread.aclose()


async def test_reads_of_one_turn_are_merged_and_each_gets_its_own(selecting: Selecting) -> None:
    found = await asyncio.gather(*(selecting.get(*its) for its in ((1, 2), (2, 4), (5,))))
    assert found == [[2], [2, 4], []]
    assert selecting.asked == [keys(1, 2, 4, 5)]


async def test_what_is_asked_during_a_read_is_read_together_next(selecting: Selecting) -> None:
    selecting.go.clear()
    first = asyncio.create_task(selecting.get(2))
    await asyncio.to_thread(selecting.began.wait)
    others = [asyncio.create_task(selecting.get(number)) for number in (4, 6)]
    await asyncio.sleep(0)
    selecting.go.set()
    assert await asyncio.gather(*[first, *others]) == [[2], [4], [6]]
    assert selecting.asked == [keys(2), keys(4, 6)]


async def test_a_long_read_is_taken_in_turns(selecting: Selecting) -> None:
    assert await selecting.get(*range(25)) == list(range(0, 25, 2))
    assert [len(its) for its in selecting.asked] == [10, 10, 5]


async def test_others_have_their_turn_between_the_parts_of_a_long_read(selecting: Selecting) -> None:
    selecting.go.clear()
    first = asyncio.create_task(selecting.get(2))
    await asyncio.to_thread(selecting.began.wait)
    others = [asyncio.create_task(selecting.get(*its)) for its in (range(100, 130), (4,))]
    await asyncio.sleep(0)
    selecting.go.set()
    await asyncio.gather(first, *others)
    assert [len(its) for its in selecting.asked] == [1, 10, 1, 10, 10]


@pytest.mark.parametrize(("neighbor", "its"), [(5, 10), (9, 10), (2, 9), (9, 2), (8, 4)])
async def test_a_request_gets_its_own_keys_whatever_it_shares_a_read_with(
    selecting: Selecting, neighbor: int, its: int
) -> None:
    """Also where a read that it shares has as many keys as it has itself."""
    selecting.go.clear()
    first = asyncio.create_task(selecting.get(2))
    await asyncio.to_thread(selecting.began.wait)
    ranges = [range(100, 100 + neighbor), range(200, 200 + its)]
    both = [asyncio.create_task(selecting.get(*numbers)) for numbers in ranges]
    await asyncio.sleep(0)
    selecting.go.set()
    assert await asyncio.gather(*both) == [[number for number in numbers if not number % 2] for numbers in ranges]
    await first


async def test_what_nobody_waits_for_any_more_is_not_read(selecting: Selecting) -> None:
    selecting.go.clear()
    first = asyncio.create_task(selecting.get(2))
    await asyncio.to_thread(selecting.began.wait)
    with pytest.raises(StoreError) as failure:
        await selecting.get(4, timeout_s=0.0)
    assert failure.value.reason == "timeout"
    selecting.go.set()
    assert await first == [2]
    assert await selecting.get(6) == [6]
    assert selecting.asked == [keys(2), keys(6)]


async def test_a_failure_is_everybodys(selecting: Selecting) -> None:
    selecting.failure = sqlite3.OperationalError("disk I/O error")
    results = await asyncio.gather(selecting.get(2), selecting.get(4), return_exceptions=True)
    assert [type(result) for result in results] == [StoreError, StoreError]
    selecting.failure = None
    assert await selecting.get(2) == [2]
