"""Work that comes up again and again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_log = logging.getLogger(__name__)


@asynccontextmanager
async def every(period_s: float, work: Callable[[float], object]) -> AsyncIterator[None]:
    """Call ``work`` once a period for as long as the block lasts, with the seconds by which the loop came too late.

    Work that fails is logged, and called again the next time.
    """
    now = asyncio.get_running_loop().time

    async def go_on() -> None:
        while True:
            due_s = now() + period_s
            await asyncio.sleep(period_s)
            try:
                work(max(0.0, now() - due_s))
            except Exception:  # noqa: BLE001 - whatever it is, the next time may be better
                _log.exception("periodic work failed")

    going_on = asyncio.create_task(go_on())
    try:
        yield
    finally:
        going_on.cancel()
