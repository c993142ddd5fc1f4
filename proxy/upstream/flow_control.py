"""Back-pressure on upstream responses: a limit on how many bytes of large responses are in memory at a time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

# A smaller response never waits: the limit on concurrent calls bounds how many there are.
_SMALL_BYTES = 1024 * 1024


class ResponseFlow:
    """One response. Its bytes count until its embeddings have been parsed."""

    __slots__ = ("_control", "_received_bytes", "counted_bytes")

    def __init__(self, control: "FlowControl") -> None:
        self._control = control
        self._received_bytes = 0
        self.counted_bytes = 0

    async def received(self, size: int) -> None:
        """Count ``size`` more bytes. Returns when the next may be read."""
        self._received_bytes += size
        if self._received_bytes > _SMALL_BYTES:
            await self._control.take(self, size)


class FlowControl:
    """Pauses the reading of large responses when they would have more than ``limit_bytes`` together. The oldest one is
    always read, so one response may exceed the limit, and none waits forever."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.used_bytes = 0
        self._large: dict[ResponseFlow, None] = {}  # oldest first
        self._waiting: list[asyncio.Future[None]] = []

    @contextmanager
    def response(self) -> Iterator[ResponseFlow]:
        flow = ResponseFlow(self)
        try:
            yield flow
        finally:
            if flow in self._large:
                del self._large[flow]
                self.used_bytes -= flow.counted_bytes
                self._wake()

    async def take(self, flow: ResponseFlow, size: int) -> None:
        self._large.setdefault(flow)
        while self.used_bytes + size > self._limit_bytes and next(iter(self._large)) is not flow:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        flow.counted_bytes += size
        self.used_bytes += size

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
