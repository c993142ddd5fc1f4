"""A thread for work that would block the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from proxy.reservation import MemoryReservation

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Worker:
    """One thread, so that such work uses at most one core, and only the memory of one call at a time."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    def close(self) -> None:
        self._executor.shutdown(wait=False)

    async def run(self, function: Callable[..., _T], *arguments: Any, held: MemoryReservation | None = None) -> _T:
        """Call ``function`` in the thread. Cancelling the caller ends neither the call nor ``held``."""
        work = asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
        if held is not None:
            held.lasts_until(work)
        return await asyncio.shield(work)
