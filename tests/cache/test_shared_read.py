"""A read that several requests wait for."""

import asyncio
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.shared_read import SharedRead, wait_for

FOREVER_S = 3600.0


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@given(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=6), st.permutations(range(4)))
def test_each_waits_for_the_last_of_its_reads(waits: list[set[int]], ends: list[int]) -> None:
    async def check() -> None:
        reads = [SharedRead[bytes]() for _ in range(4)]
        tasks = [asyncio.create_task(wait_for([reads[n] for n in its], timeout_s=FOREVER_S)) for its in waits]
        await turns()
        for count, number in enumerate(ends, 1):
            reads[number].end()
            await turns()
            assert [task.done() for task in tasks] == [its <= set(ends[:count]) for its in waits]

    asyncio.run(check())


async def test_a_waiter_that_gives_up_ends_nothing_for_the_others() -> None:
    read = SharedRead[bytes]()
    patient, cancelled = (asyncio.create_task(wait_for([read], timeout_s=FOREVER_S)) for _ in range(2))
    await wait_for([read], timeout_s=0.0)  # returns
    cancelled.cancel()
    with suppress(asyncio.CancelledError):
        await cancelled
    await turns()
    assert not patient.done()
    assert not read.is_done
    read.end()
    await patient
