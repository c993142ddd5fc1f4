"""The bulkhead: calls in flight are bounded in all and by tenant, and no slot is ever lost."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Overloaded
from proxy.fetch.slots import Slots
from proxy.upstream.router import Origin
from tests.support.fake_client import FakeClient, origin_of
from tests.support.virtual_loop import run_virtually, virtually

TIMEOUT_S = 5.0
ANN, BOB, CAT = b"ann", b"bob", b"cat"


class Bulkhead:
    """Slots for ``concurrency`` calls, and calls that last until a test ends them."""

    def __init__(self, concurrency: int) -> None:
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.waits_s: list[float] = []
        self.origin = origin_of(FakeClient())
        self.under_way: Counter[tuple[Origin, bytes]] = Counter()
        self._tasks: list[asyncio.Task[None]] = []  # the event loop keeps none
        self.slots = Slots(concurrency, timeout_s=TIMEOUT_S, waited_s=self.waits_s.append, room=self._room)

    async def _room(self) -> None:
        await self.has_room.wait()

    async def _call(self, name: tuple[Origin, bytes], end: asyncio.Event) -> None:
        async with self.slots.slot(*name):
            self.under_way[name] += 1
            try:
                await end.wait()
            finally:
                self.under_way[name] -= 1

    async def start(self, tenant: bytes, origin: Origin | None = None) -> tuple["asyncio.Task[None]", asyncio.Event]:
        """Start a call, and return when it has its slot or waits for one."""
        end = asyncio.Event()
        task = asyncio.create_task(self._call((origin or self.origin, tenant), end))
        self._tasks.append(task)
        await self.settle()
        return task, end

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def assert_nothing_is_lost(self, concurrency: int) -> None:
        """As many calls as ever can be under way, of tenants that had none before."""
        assert not self.under_way.total()
        assert not self.slots._tenants
        async with AsyncExitStack() as stack:
            for number in range(concurrency):
                await stack.enter_async_context(self.slots.slot(self.origin, b"tenant %d" % number))


@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (2, 1), (3, 1), (4, 2), (64, 32)])
def test_a_tenant_may_have_half_of_the_calls_and_at_least_one(concurrency: int, most: int) -> None:
    async def run() -> None:
        bulkhead = Bulkhead(concurrency)
        calls = [await bulkhead.start(ANN) for _ in range(most + 1)]
        assert bulkhead.under_way.total() == most == bulkhead.slots.max_calls_a_tenant
        for _, end in calls:
            end.set()
        await asyncio.gather(*(task for task, _ in calls))
        await bulkhead.assert_nothing_is_lost(concurrency)

    run_virtually(run())


@virtually
async def test_what_one_tenant_may_not_use_is_left_to_others() -> None:
    bulkhead = Bulkhead(4)
    for tenant in (ANN, ANN, ANN, BOB, BOB):
        await bulkhead.start(tenant)
    assert dict(bulkhead.under_way) == {(bulkhead.origin, ANN): 2, (bulkhead.origin, BOB): 2}


@virtually
async def test_a_call_that_ends_lets_the_next_one_begin() -> None:
    bulkhead = Bulkhead(2)
    _, end = await bulkhead.start(ANN)
    await bulkhead.start(BOB)
    await bulkhead.start(CAT)
    assert bulkhead.under_way[bulkhead.origin, CAT] == 0
    end.set()
    await bulkhead.settle()
    assert bulkhead.under_way[bulkhead.origin, CAT] == 1


@virtually
async def test_upstreams_have_slots_of_their_own() -> None:
    bulkhead = Bulkhead(1)
    other = origin_of(FakeClient(), "two")
    await bulkhead.start(ANN)
    await bulkhead.start(ANN, other)
    assert bulkhead.under_way.total() == 2


# --- a slot that does not come in time

# What a call may wait for: its tenant's slots, the upstream's, or memory.
WAITS_FOR = ["tenant", "upstream", "room"]


async def blocked(waits_for: str) -> tuple[Bulkhead, "asyncio.Task[None]", list[asyncio.Event]]:
    """A bulkhead for two calls, a call of Ann's that waits, and what ends the calls for which it does."""
    bulkhead = Bulkhead(2)
    if waits_for == "room":
        bulkhead.has_room.clear()
    others = {"tenant": [ANN], "upstream": [BOB, CAT], "room": []}[waits_for]
    ends = [(await bulkhead.start(tenant))[1] for tenant in others]
    task, end = await bulkhead.start(ANN)
    assert bulkhead.under_way.total() == len(ends)
    end.set()  # it ends as soon as it has begun
    return bulkhead, task, ends


@pytest.mark.parametrize("waits_for", WAITS_FOR)
def test_a_call_that_waits_too_long_is_refused_and_keeps_nothing(waits_for: str) -> None:
    async def run() -> None:
        bulkhead, task, ends = await blocked(waits_for)
        with pytest.raises(Overloaded, match="Too many calls wait"):
            await task
        assert asyncio.get_running_loop().time() == TIMEOUT_S
        await finish(bulkhead, ends)

    run_virtually(run())


@pytest.mark.parametrize("waits_for", WAITS_FOR)
def test_a_call_that_is_cancelled_while_it_waits_keeps_nothing(waits_for: str) -> None:
    async def run() -> None:
        bulkhead, task, ends = await blocked(waits_for)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await finish(bulkhead, ends)

    run_virtually(run())


@pytest.mark.parametrize("waits_for", WAITS_FOR)
def test_a_call_that_waits_begins_when_it_can(waits_for: str) -> None:
    async def run() -> None:
        bulkhead, task, ends = await blocked(waits_for)
        await finish(bulkhead, ends)
        await task

    run_virtually(run())


async def finish(bulkhead: Bulkhead, ends: list[asyncio.Event]) -> None:
    bulkhead.has_room.set()
    for end in ends:
        end.set()
    await bulkhead.settle()
    await bulkhead.assert_nothing_is_lost(2)


@virtually
async def test_the_timeout_is_one_for_slot_and_room_together() -> None:
    bulkhead = Bulkhead(1)
    _, end = await bulkhead.start(ANN)
    bulkhead.has_room.clear()
    task, _ = await bulkhead.start(BOB)
    asyncio.get_running_loop().call_later(TIMEOUT_S - 1, end.set)
    with pytest.raises(Overloaded):
        await task
    assert asyncio.get_running_loop().time() == TIMEOUT_S


@virtually
async def test_a_call_that_fails_gives_its_slot_back() -> None:
    bulkhead = Bulkhead(1)
    with pytest.raises(ZeroDivisionError):
        async with bulkhead.slots.slot(bulkhead.origin, ANN):
            raise ZeroDivisionError
    await bulkhead.assert_nothing_is_lost(1)


@virtually
async def test_each_wait_is_reported_once_however_it_ends() -> None:
    bulkhead = Bulkhead(1)
    await bulkhead.start(ANN)
    assert len(bulkhead.waits_s) == 1
    cancelled, _ = await bulkhead.start(BOB)
    late, _ = await bulkhead.start(CAT)
    cancelled.cancel()
    await asyncio.gather(cancelled, late, return_exceptions=True)
    assert len(bulkhead.waits_s) == 3
    assert all(waited_s >= 0 for waited_s in bulkhead.waits_s)


# --- whatever happens

STEPS = st.lists(
    st.tuples(st.sampled_from(["start", "end", "cancel"]), st.sampled_from([ANN, BOB, CAT]), st.integers(0, 9)),
    max_size=40,
)


@given(STEPS, st.integers(1, 5))
def test_the_bounds_hold_and_no_slot_is_lost(steps: list[tuple[str, bytes, int]], concurrency: int) -> None:
    async def run() -> None:
        bulkhead = Bulkhead(concurrency)
        calls: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        for step, tenant, which in steps:
            if step == "start":
                calls.append(await bulkhead.start(tenant))
            elif calls:
                task, end = calls.pop(which % len(calls))
                end.set() if step == "end" else task.cancel()
                await bulkhead.settle()
            assert bulkhead.under_way.total() <= concurrency
            assert max(bulkhead.under_way.values(), default=0) <= bulkhead.slots.max_calls_a_tenant
        for _, end in calls:
            end.set()
        done: list[Any] = await asyncio.gather(*(task for task, _ in calls), return_exceptions=True)
        assert done == [None] * len(calls)
        await bulkhead.assert_nothing_is_lost(concurrency)

    run_virtually(run())
