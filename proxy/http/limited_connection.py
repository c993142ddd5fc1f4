"""The limits of one client's connection, and how it is closed."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import HttpVersion11, StreamReader, web

from proxy.errors import Overloaded, ProxyError, RequestTimeout
from proxy.http.aiohttp_seam import AiohttpConnection
from proxy.http.error_responses import error_bytes
from proxy.http.lingering import Lingering, shut_down
from proxy.http.liveness import HalfClosed, Unread, is_reset
from proxy.http.timeouts import ConnectionTimer, Overdue
from proxy.reservation import MemoryReservation
from proxy.tenant import Tenant

# How many connections over the limit may linger. Each uses a file descriptor that the limit does not count.
_MAX_EXCESS = 64
# How long aiohttp may take to cancel a handler once the time for finishing requests is over.
_CANCEL_S = 0.1
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionContext:
    """What the connections of one server share."""

    loop: asyncio.AbstractEventLoop
    now: Callable[[], float]  # seconds
    max_connections: int
    reserve: Callable[[Tenant], MemoryReservation] | None


class LimitedConnection(AiohttpConnection):
    """A connection with timeouts, and with a limit on the memory for responses that the client has not read.

    Times are those of the server's clock, in seconds.
    """

    __slots__ = (
        "_content",
        "_context",
        "_half_closed",
        "_is_retired",
        "_lingering",
        "_lost",
        "_now",
        "_request",
        "_server",
        "_timer",
        "_transport",
        "_unread",
        "_write_reservation",
        "tenant",
    )

    def __init__(self, server: web.Server, context: ConnectionContext, **options: Any) -> None:
        super().__init__(server, loop=context.loop, **options)
        self._server = server
        self._context = context
        self._now = context.now
        # aiohttp drops its own reference when it closes the transport, which may still have much to write.
        self._transport: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] | None = None  # `shutdown` waits for it; set when the connection is lost
        self._request: web.BaseRequest | None = None  # from its head to the last byte of its response
        self._content: StreamReader | None = None  # the body of that request or, between two, of the last one
        self._is_retired = False  # the proxy drains: the next response is the last one
        self._half_closed: HalfClosed | None = None  # set when the client has closed its side
        self._lingering: Lingering | None = None
        self._unread = Unread()
        self._timer = ConnectionTimer(context.now())
        self.tenant: Tenant | None = None  # of the current request
        self._write_reservation: tuple[MemoryReservation, int] | None = None  # for bytes that the client has not read

    @property
    def is_busy(self) -> bool:
        """Whether it has a request whose response has not been written in full."""
        return self._request is not None

    def parse_pending(self) -> None:
        """Give the parser the bytes that were kept back."""

    def parse_overdue(self) -> None:
        """Call `parse_pending` at a sweep, unless the response to those bytes has begun."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        excess = len(self._server.connections) - self._context.max_connections
        if excess > 0:
            self._refuse(Overloaded("Too many connections are open."), lingers=excess <= _MAX_EXCESS)

    def pause_writing(self) -> None:
        """The write buffer is full. Until the client has read from it, the connection serves no further request."""
        super().pause_writing()
        self.reserve_unread()

    def reserve_unread(self) -> None:
        """Reserve the memory of what the client has not read, or close the connection if there is no room for it."""
        self._release_write_reservation()
        reservation = self.reservation()
        if reservation is None or self._transport is None:
            return
        size = self._transport.get_write_buffer_size()
        try:
            reservation.take(size)
        except Overloaded:
            self._transport.abort()
        else:
            self._write_reservation = reservation, size

    def reservation(self) -> MemoryReservation | None:
        """For memory of the current request's tenant."""
        if self.tenant is None or self._context.reserve is None:
            return None
        return self._context.reserve(self.tenant)

    def resume_writing(self) -> None:
        self._release_write_reservation()
        super().resume_writing()

    def _release_write_reservation(self) -> None:
        if self._write_reservation is not None:
            reservation, size = self._write_reservation
            reservation.give_back(size)
            self._write_reservation = None

    def eof_received(self) -> bool | None:  # type: ignore[override] # aiohttp's returns None where asyncio takes a bool
        """The client has closed its side. Returns whether the connection stays open for responses."""
        if self._lingering is not None or not self._is_response_due():
            return None
        self._half_closed = HalfClosed(self._now())
        self._probe()
        return True

    def _is_response_due(self) -> bool:
        """Whether a request without a response has been received in full."""
        if self.has_queued_requests:
            return self.is_last_queued_complete
        return self.is_busy and self._has_whole_body()

    def _has_whole_body(self) -> bool:
        return self._content is None or self._content.is_eof()

    def _probe(self) -> bool:
        """Send an interim response, which clients skip (RFC 9110 §15.2), to find out if the client is still there.

        False if that is not possible: HTTP/1.0 has no interim responses, and none may follow the final response's head.
        """
        request = self._request
        if request is None or request.version < HttpVersion11 or request.writer.output_size or self._transport is None:
            return False
        self._transport.write(_CONTINUE)
        # The kernel of a client on this machine responds at once. If it takes longer, a sweep sees it.
        self._context.loop.call_soon(self._abort_if_reset)
        return True

    def _abort_if_reset(self) -> None:
        if self._transport is not None and is_reset(self._transport):
            self._transport.abort()

    def sweep(self, now: float) -> None:
        """Close the connection if the client has sent nothing, or read nothing, for too long."""
        transport = self._transport
        if transport is None:
            return
        self._unread.update(transport, now)
        if self._unread.is_overdue(now) or self.has_client_left(transport, now):
            transport.abort()  # closing would wait until the client has read everything
            return
        if self._unread.size:
            self._timer.postpone(now)
        if self._lingering is not None:
            if self._timer.is_linger_over(now):
                self._end_lingering()
            return
        self.parse_overdue()
        if not self.is_busy and not transport.is_closing():
            self._close_if_overdue(now)

    def has_client_left(self, transport: asyncio.Transport, now: float) -> bool:
        """Whether the client closed its side because it has left."""
        if self._half_closed is None:
            return False
        written = 0 if self._request is None else self._request.writer.output_size
        self._half_closed.update(now, written=written, unread=self._unread.size)
        if self._half_closed.is_overdue(now):
            if not self._probe():
                return True
            self._half_closed.probed(now)
        return is_reset(transport)

    def _close_if_overdue(self, now: float) -> None:
        match self._timer.overdue(now):
            case Overdue.HEAD:
                self._refuse(RequestTimeout("The head of the request did not arrive in time."))
            case Overdue.NEXT_REQUEST:
                self.force_close()

    def _refuse(self, error: ProxyError, *, lingers: bool = True) -> None:
        if self.transport is not None:
            self.transport.write(error_bytes(error))
        if lingers:
            self._linger()
        else:
            self.force_close()

    def _linger(self) -> asyncio.Future[None]:
        """Close the writing side, so that the client can read the response before the connection is closed."""
        self._lingering = Lingering(self._context.loop)
        self._timer.linger_began(self._now())
        transport = self.transport
        if transport is None or transport.is_closing() or self._half_closed is not None:
            self.force_close()
        else:
            shut_down(transport)
            transport.resume_reading()  # back-pressure may have paused it
        return self._lingering.over

    def _discard(self, lingering: Lingering, data: bytes) -> None:
        if not lingering.discard(data):
            self._end_lingering()

    def _end_lingering(self) -> None:
        if self.transport is not None:
            self.transport.abort()  # closing would wait until the client has read the response
        self.force_close()

    def retire(self) -> None:
        """Respond to the current request, if any, and then close the connection."""
        self._is_retired = True
        self.keep_alive(False)
        self.parse_pending()
        is_responding = self.is_busy or self.has_queued_requests or self._lingering is not None
        if not is_responding and self._has_whole_body():  # aiohttp reads the rest of a body after its response
            self.force_close()

    def force_close(self) -> None:
        if self._lingering is not None:
            self._lingering.end()
        super().force_close()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """Wait until the client has read the last response, for at most ``timeout`` seconds.

        aiohttp's own method drops the rest of a request first, and does not wait until the response has been sent.
        """
        if self._transport is not None:
            self._lost = self._context.loop.create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._lost
        await super().shutdown(_CANCEL_S)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._release_write_reservation()
        super().connection_lost(exc)
        self._transport = None
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)
