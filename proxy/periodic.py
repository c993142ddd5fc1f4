"""Periodic work."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from proxy.tasks import TaskSet, log_to

_log = logging.getLogger(__name__)

_Work = Callable[[float], Awaitable[object] | None]


@asynccontextmanager
async def every(period_s: float, work: _Work) -> AsyncIterator[None]:
    """Call ``work`` once a period until the block ends. Its argument is how many seconds late the event loop is.

    A failure is logged, and does not stop the next call.
    """
    tasks = TaskSet(log_to(_log, "periodic work"))
    tasks.start(_repeat(period_s, work))
    try:
        yield
    finally:
        await tasks.aclose()


async def _repeat(period_s: float, work: _Work) -> None:
    now = asyncio.get_running_loop().time
    while True:
        due_s = now() + period_s
        await asyncio.sleep(period_s)
        try:
            if (in_progress := work(max(0.0, now() - due_s))) is not None:
                await in_progress
        except Exception:  # noqa: BLE001 - the next call may succeed
            _log.exception("periodic work failed")
