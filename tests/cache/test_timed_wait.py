"""A timeout ends the wait, and not the work."""

import asyncio

from proxy.cache.timed_wait import timed_wait

FOREVER_S = 3600.0


async def test_it_ends_with_the_last_of_the_work() -> None:
    work: list[asyncio.Future[None]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    wait = asyncio.create_task(timed_wait(work, timeout_s=FOREVER_S))
    for future in work:
        for _ in range(5):
            await asyncio.sleep(0)
        assert not wait.done()
        future.set_result(None)
    await wait


async def test_the_timeout_leaves_the_work_alone() -> None:
    work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await timed_wait([work], timeout_s=0.0)
    assert not work.done()


async def test_work_that_ends_in_the_turn_after_the_timeout_counts() -> None:
    """As the reply that is here already when a busy event loop runs the timer."""
    loop = asyncio.get_running_loop()
    work: asyncio.Future[None] = loop.create_future()

    async def is_done_after_the_wait() -> bool:
        await timed_wait([work], timeout_s=0.0)
        return work.done()

    async def reply() -> None:
        work.set_result(None)

    wait = asyncio.create_task(is_done_after_the_wait())
    await asyncio.sleep(0)  # its timer is set
    replies: list[asyncio.Task[None]] = []
    loop.call_later(0, lambda: replies.append(asyncio.create_task(reply())))
    assert await wait
