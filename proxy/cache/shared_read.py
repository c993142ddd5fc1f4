"""One read of the store that several requests wait for."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Generic, TypeVar

_Key = TypeVar("_Key")


class SharedRead(Generic[_Key]):
    """A read of several keys. It ends once, for all requests that wait for it. If one of them stops waiting, the read
    and the others go on."""

    __slots__ = ("_waiters", "is_done", "keys")

    def __init__(self) -> None:
        self._waiters: list[_Waiter] = []
        self.is_done = False
        self.keys: list[_Key] = []

    def take(self, keys: Sequence[_Key], max_keys: int) -> Sequence[_Key]:
        """Add as many of ``keys`` as there is room for. Returns the others."""
        room = max_keys - len(self.keys)
        if len(keys) <= room:
            self.keys += keys
            return ()
        self.keys += keys[:room]
        return keys[room:]

    def end(self) -> None:
        self.is_done = True
        for waiter in self._waiters:
            waiter.one_ended()
        self._waiters.clear()

    @property
    def is_wanted(self) -> bool:
        """Whether something waits for it."""
        return bool(self._waiters)

    def add(self, waiter: "_Waiter") -> None:
        self._waiters.append(waiter)

    def leave(self, waiter: "_Waiter") -> None:
        self._waiters.remove(waiter)


class _Waiter:
    __slots__ = ("_missing", "future")

    def __init__(self, missing: int, future: asyncio.Future[None]) -> None:
        self._missing = missing
        self.future = future

    def one_ended(self) -> None:
        self._missing -= 1
        if not self._missing:
            self.stop()

    def expire(self) -> None:
        # A busy event loop may run this timer before it handles replies that are already here, so wait one iteration.
        asyncio.get_running_loop().call_later(0, self.stop)

    def stop(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


async def wait_for(reads: Collection[SharedRead[Any]], *, timeout_s: float) -> None:
    """Wait until all ``reads``, none of which is done, have ended, or ``timeout_s`` have passed."""
    loop = asyncio.get_running_loop()
    waiter = _Waiter(len(reads), loop.create_future())
    for read in reads:
        read.add(waiter)
    timer = loop.call_later(timeout_s, waiter.expire)
    try:
        await waiter.future
    finally:
        timer.cancel()
        for read in reads:
            if not read.is_done:
                read.leave(waiter)
