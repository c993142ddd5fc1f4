"""Back-pressure on responses of upstreams: how much of large ones is in memory at a time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

# A smaller response never waits. There are no more of them than calls at a time.
_SMALL_BYTES = 1024 * 1024


class Incoming:
    """One response; it counts until its embeddings have been read."""

    __slots__ = ("_intake", "_received_bytes", "counted_bytes")

    def __init__(self, intake: "Intake") -> None:
        self._intake = intake
        self._received_bytes = 0
        self.counted_bytes = 0

    async def take(self, size: int) -> None:
        """So many bytes of it have come. Returns when the next may be read."""
        self._received_bytes += size
        if self._received_bytes > _SMALL_BYTES:
            await self._intake.take(self, size)


class Intake:
    """Large responses are read while they have no more than ``limit_bytes`` in all. The oldest of them is always read,
    so that one can be larger than that, and none waits for ever."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.used_bytes = 0
        self._large: dict[Incoming, None] = {}  # oldest first
        self._waiting: list[asyncio.Future[None]] = []

    @contextmanager
    def response(self) -> Iterator[Incoming]:
        incoming = Incoming(self)
        try:
            yield incoming
        finally:
            if incoming in self._large:
                del self._large[incoming]
                self.used_bytes -= incoming.counted_bytes
                self._wake()

    async def take(self, incoming: Incoming, size: int) -> None:
        self._large.setdefault(incoming)
        while self.used_bytes + size > self._limit_bytes and next(iter(self._large)) is not incoming:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        incoming.counted_bytes += size
        self.used_bytes += size

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
