"""Work in a thread: one at a time, and it outlives whoever asked for it."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from proxy.capacity import SharedCapacity
from proxy.reservation import MemoryReservation
from proxy.tenant import Tenant
from proxy.worker_thread import Worker


def reserved(size: int) -> MemoryReservation:
    reservation = MemoryReservation(SharedCapacity(size, "bytes", unverified_limit=size), Tenant(b"one"))
    reservation.take(size)
    return reservation


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker("test")
    yield worker
    worker.close()


async def test_the_result_or_the_exception_is_the_callers(worker: Worker) -> None:
    assert await worker.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await worker.run(divmod, 7, 0)


async def test_calls_take_turns_in_one_thread(worker: Worker) -> None:
    names = await asyncio.gather(*(worker.run(lambda: threading.current_thread().name) for _ in range(10)))
    assert len(set(names)) == 1
    assert names[0].startswith("test")
    assert names[0] != threading.current_thread().name


async def test_a_caller_that_is_cancelled_ends_neither_the_work_nor_its_reservation(worker: Worker) -> None:
    began, go_on, held = threading.Event(), threading.Event(), reserved(8)
    done: list[str] = []

    def work() -> None:
        began.set()
        go_on.wait()
        done.append("work")

    async def call() -> None:
        try:
            await worker.run(work, held=held)
        finally:
            held.release()

    caller = asyncio.create_task(call())
    await asyncio.to_thread(began.wait)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (done, held.bytes) == ([], 8)
    go_on.set()
    await worker.run(done.append, "next")
    assert done == ["work", "next"]
    assert held.bytes == 0


async def test_work_that_fails_releases_its_reservation(worker: Worker) -> None:
    held = reserved(8)
    with pytest.raises(ZeroDivisionError):
        await worker.run(divmod, 7, 0, held=held)
    held.release()
    assert held.bytes == 0
