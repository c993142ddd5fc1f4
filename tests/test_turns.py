"""Large work in turns with everything else on the event loop."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import ClassVar

import pytest

from proxy import turns
from proxy.steps import Steps
from proxy.turns import KEYS_A_TURN


@asynccontextmanager
async def iterations() -> AsyncIterator[list[int]]:
    """The number of iterations of the event loop so far, as the only element of the list."""
    count = [0]
    handle: asyncio.Handle

    def tick() -> None:
        nonlocal handle
        count[0] += 1
        handle = asyncio.get_running_loop().call_soon(tick)

    tick()
    yield count
    handle.cancel()


async def work(log: list[tuple[str, int]], name: str, count: list[int], pieces: int) -> None:
    for _ in range(pieces):
        await turns.turn()
        log.append((name, count[0]))


async def test_an_iteration_has_one_turn_however_many_wait() -> None:
    log: list[tuple[str, int]] = []
    async with iterations() as count:
        await asyncio.gather(*(work(log, name, count, pieces=4) for name in "abc"))
    assert [name for name, _ in log] == list("abc" * 4)
    ran_in = [number for _, number in log]
    assert len(set(ran_in)) == len(ran_in)


async def test_no_turn_is_lost_while_others_wait() -> None:
    log: list[tuple[str, int]] = []
    async with iterations() as count:
        await asyncio.gather(*(work(log, name, count, pieces=4) for name in "ab"))
    assert log[-1][1] - log[0][1] == len(log) - 1


async def test_a_cancelled_waiter_has_no_turn() -> None:
    log: list[tuple[str, int]] = []
    async with iterations() as count:
        leaves = asyncio.create_task(work(log, "leaves", count, pieces=1))
        stays = asyncio.create_task(work(log, "stays", count, pieces=2))
        await asyncio.sleep(0)
        leaves.cancel()
        await stays
    assert [name for name, _ in log] == ["stays", "stays"]


def counting(done: list[int], steps: int) -> Steps[str]:
    for number in range(steps):
        done.append(number)
        yield
    return "result"


async def test_steps_are_interrupted_when_their_turn_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now: Iterator[float] = iter(number * 0.0002 for number in range(1000))
    monkeypatch.setattr("proxy.turns.time", SimpleNamespace(perf_counter=lambda: next(now)))
    done: list[int] = []
    running = asyncio.create_task(turns.run(counting(done, steps=5)))
    await asyncio.sleep(0)
    assert 0 < len(done) < 5
    assert await running == "result"
    assert done == [0, 1, 2, 3, 4]


async def test_a_turn_that_begins_late_has_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now: Iterator[float] = iter(range(20))
    monkeypatch.setattr("proxy.turns.time", SimpleNamespace(perf_counter=lambda: next(now)))
    assert await turns.run(counting([], steps=5)) == "result"
    assert next(now) == 11  # two for each step, and one when the last step is asked for more


async def test_steps_that_end_within_their_turn_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.turns.time", SimpleNamespace(perf_counter=lambda: 0.0))
    running = turns.run(counting([], steps=100))
    with pytest.raises(StopIteration, match="result"):
        running.send(None)


class Part:
    freed: ClassVar[list[int]] = []

    def __init__(self, number: int) -> None:
        self._number = number

    def __del__(self) -> None:
        Part.freed.append(self._number)


async def test_parts_are_freed_in_turns_and_the_last_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now: Iterator[float] = iter(number * 0.0002 for number in range(1000))
    monkeypatch.setattr("proxy.turns.time", SimpleNamespace(perf_counter=lambda: next(now)))
    monkeypatch.setattr(Part, "freed", [])
    parts = [Part(number) for number in range(9)]
    freed_after = []
    turns.free(parts)
    while parts:
        await asyncio.sleep(0)
        freed_after.append(len(Part.freed))
    assert Part.freed == list(range(9))[::-1]
    assert max(after - before for before, after in pairwise(freed_after)) < 3


async def test_chunks_are_all_items_in_order() -> None:
    items = list(range(2 * KEYS_A_TURN + 1))
    chunks = [list(some) async for some in turns.in_turns(items)]
    assert [len(chunk) for chunk in chunks] == [KEYS_A_TURN, KEYS_A_TURN, 1]
    assert [item for chunk in chunks for item in chunk] == items
