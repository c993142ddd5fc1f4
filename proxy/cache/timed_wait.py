"""Waits for what a store works on, with a timeout that ends the wait and not the work."""

import asyncio
from collections.abc import Collection
from typing import Any


async def timed_wait(work: Collection["asyncio.Future[Any]"], *, timeout_s: float) -> None:
    """Wait until all of ``work`` is done, or ``timeout_s`` have passed."""
    _, pending = await asyncio.wait(work, timeout=timeout_s)
    if pending:  # A busy event loop may run the timer before it handles replies that are already here.
        await asyncio.sleep(0)
