"""One request on the cached route, from its admission until it is counted."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp.web import StreamResponse

from proxy.embeddings.progress import Progress
from proxy.errors import ProxyError
from proxy.protocol.identities import Identity
from proxy.reservation import MemoryReservation


class Exchange:
    """``own`` is the client's own identity. The request began at ``started_s``, by `time.perf_counter`."""

    __slots__ = ("own", "progress", "reservation", "started_s", "user_agent")

    def __init__(
        self,
        progress: Progress,
        own: Identity,
        reservation: MemoryReservation,
        *,
        user_agent: str | None,
        started_s: float,
    ) -> None:
        self.progress = progress
        self.own = own
        self.reservation = reservation
        self.user_agent = user_agent
        self.started_s = started_s


class BegunExchange:
    """An exchange that has begun before its request was parsed. The connection has it as a
    `proxy.http.begun_response.BegunResponse`.

    Exactly one party ends it: the handler, once it has called `take`; ``end``, if the connection is lost before that;
    otherwise the caller of `run`.
    """

    __slots__ = ("_end", "_error", "_is_taken", "_response", "_task", "exchange", "is_handed_over")

    def __init__(self, exchange: Exchange, task: "asyncio.Task[Any]", end: Callable[[], object]) -> None:
        """``task`` is the one that calls `run`. ``end`` is for a client that has left."""
        self.exchange = exchange
        self.is_handed_over = False
        self._task = task
        self._end = end
        self._is_taken = False
        self._response: StreamResponse | None = None
        self._error: Exception | None = None

    async def run(self, response: Awaitable[StreamResponse]) -> StreamResponse | None:
        """Wait for the response; None if it is an error, which `take` raises, or if it is for the handler."""
        try:
            self._response = await response
        except Exception as error:  # noqa: BLE001 - the handler raises it
            self._error = error
        except asyncio.CancelledError:
            if not self._is_taken:
                self._end()
            raise
        return None if self.is_handed_over else self._response

    def hand_over(self) -> None:
        self.is_handed_over = True

    def abandon(self) -> None:
        if self._task.done():
            self._end()
        else:
            self._task.cancel()

    async def take(self) -> StreamResponse:
        """The response, for the handler of the parsed request. Its cancellation ends the wait. Raises `ProxyError`."""
        self._is_taken = True
        await self._task
        if self._error is not None:
            raise self._error
        if self._response is None:
            raise ProxyError("Internal error; see the proxy log.")
        return self._response
