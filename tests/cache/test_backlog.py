"""Back-pressure: upstream calls wait while too many bytes wait for the store, unless the store hangs."""

import asyncio

from proxy.cache.backlog import Backlog
from tests.support.virtual_loop import virtually


def now_s() -> float:
    return asyncio.get_running_loop().time()


def full() -> Backlog:
    backlog = Backlog(max_bytes=100, stall_s=2.0)
    backlog.began(60)
    backlog.began(60)
    return backlog


@virtually
async def test_there_is_room_up_to_the_bound() -> None:
    backlog = Backlog(max_bytes=100, stall_s=2.0)
    backlog.began(100)
    await backlog.room()
    assert now_s() == 0.0
    assert not backlog.refuses
    assert repr(backlog) == "<Backlog 100 of 100 bytes>"


@virtually
async def test_a_call_waits_until_enough_was_written() -> None:
    backlog = full()
    backlog.began(60)
    waiting = asyncio.create_task(backlog.room())
    await asyncio.sleep(1)
    backlog.ended(60)
    await asyncio.sleep(1.5)
    assert not waiting.done()  # 120 bytes are left, and the store has made progress
    backlog.ended(60)
    await waiting
    assert (now_s(), backlog.pending_bytes) == (2.5, 60)
    assert not backlog.refuses


@virtually
async def test_a_store_that_ends_no_write_is_not_waited_for() -> None:
    backlog = full()
    await backlog.room()
    assert now_s() == 2.0
    assert backlog.refuses
    await backlog.room()
    assert now_s() == 2.0
    assert repr(backlog) == "<Backlog 120 of 100 bytes, stalled>"


@virtually
async def test_a_stalled_store_takes_writes_while_there_is_room() -> None:
    backlog = full()
    await backlog.room()
    backlog.pending_bytes = 100
    assert not backlog.refuses


@virtually
async def test_a_write_that_ends_ends_the_stall() -> None:
    backlog = full()
    backlog.began(60)
    await backlog.room()
    backlog.ended(60)
    assert not backlog.refuses
    await backlog.room()
    assert now_s() == 4.0


@virtually
async def test_a_write_that_ends_as_the_wait_does_is_progress() -> None:
    backlog = full()
    backlog.began(60)
    asyncio.get_running_loop().call_at(2.0, backlog.ended, 60)
    await backlog.room()
    assert now_s() == 4.0
    assert backlog.refuses
