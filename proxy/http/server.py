"""The HTTP server's side of connections: how many there may be, and how long each may take.

aiohttp waits for ever for a head that does not come, so whoever opens connections and says little has them all.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import ERROR, RequestHandler, RequestPayloadError

from proxy.budget import Tenant
from proxy.errors import InvalidRequest, Overloaded, ProxyError, RequestTimeout
from proxy.http import malformed
from proxy.http.aiohttp_seam import AiohttpConnection
from proxy.http.liveness import HalfClosed, Unread, is_reset

_log = logging.getLogger(__name__)

HEAD_END = b"\r\n\r\n"
# A MAC of more costs what it may save; a request of so many bytes that comes again is known by its body.
MAX_WHOLE_BYTES = 16 * 1024

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_NEVER_S = 10 * 365 * 86400.0
# From the connection or the first byte of a request to the last of its head.
_HEAD_TIMEOUT_S = 30.0
# Between two requests of one connection.
_IDLE_TIMEOUT_S = 75.0
SWEEP_S = 1.0
# A body may take so long in any case, and beyond that so many bytes a second.
_BODY_GRACE_S = 20.0
_MIN_BODY_BYTES_A_SECOND = 16 * 1024
# And this long between two bytes, or a fast start would earn hours of silence.
_BODY_SILENCE_S = 30.0
# How long, and for how much, a connection that is to be closed discards what its client still sends (see `_linger`).
_LINGER_S = 5.0
_LINGER_BYTES = 1024 * 1024
# Connections over the limit that may linger: each is a file descriptor that the limit does not count.
_MAX_EXCESS = 64
# How long aiohttp may take to cancel a handler once the time for finishing requests is over.
_CANCEL_S = 0.1
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def shut_down(transport: asyncio.Transport) -> None:
    """Close the writing side, where that can be done without the other."""
    if transport.can_write_eof():
        with suppress(OSError):  # the peer has reset the connection, which the transport learns in a moment
            transport.write_eof()


def head_of(sent: bytes) -> bytes:
    """The head that these bytes begin with, its end included; a few bytes that are none where there is no end."""
    return sent[: sent.find(HEAD_END) + len(HEAD_END)]


class Reservation(Protocol):
    """Memory of one tenant."""

    def take(self, size: int) -> None:
        """Raises `Overloaded` if there is no room."""
        ...

    def give_back(self, size: int) -> None: ...


class FastPath(Protocol):
    """Who knows requests by nothing but their bytes."""

    def answer_whole(self, sent: bytes, connection: "Connection") -> Sequence[bytes] | None:
        """The answer to a request of just these bytes, head and all; None: it must be read.

        Sets the ``tenant`` of the connection.
        """
        ...

    def begins(self, sent: bytes) -> bool:
        """Whether these bytes are the head of a request that may have an answer, whose body is yet to come."""
        ...


class Tunnel(Protocol):
    """What takes a connection over when it is upgraded."""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """What came; the result is what aiohttp's parsers return: not over, and nothing left."""
        ...

    def feed_eof(self) -> None:
        """The client sends no more."""
        ...

    def go_away(self) -> None:
        """The connection is about to be closed, or is lost."""
        ...


class Connection(AiohttpConnection):
    """One connection. Times are those of the loop's clock.

    Between two requests, when aiohttp has seen the last byte of the one and none of the other, what comes is shown to
    `FastPath` first. It is an answer only for a whole request that aiohttp, too, would have taken for one, since such a
    one was seen there to be just as long. Clients send head and body apart, so a head that is known waits for the next
    bytes, or for the next sweep.
    """

    __slots__ = (
        "_charged",
        "_content",
        "_discarded",
        "_half_closed",
        "_held",
        "_is_between",
        "_is_busy",
        "_is_last",
        "_is_retired",
        "_lingered",
        "_lost",
        "_received",
        "_request",
        "_server",
        "_since",
        "_speaks",
        "_start",
        "_transport",
        "_tunnel",
        "_unread",
        "tenant",
    )

    def __init__(self, manager: "Server", **options: Any) -> None:
        super().__init__(manager, **options)
        self._server = manager
        # aiohttp drops its own reference when it closes the transport, which may still have much to write.
        self._transport: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] | None = None  # for `shutdown`: set when the connection is lost
        self._is_busy = False  # with a request, from its head to the last byte of its response
        self._request: web.BaseRequest | None = None  # that request
        self._content: StreamReader | None = None  # the body of that request or, between two, of the last one
        self._is_last = False  # what comes can't be parsed: the next response is the last one
        self._is_retired = False  # the proxy ends: the next response is the last one
        self._tunnel: Tunnel | None = None
        self._half_closed: HalfClosed | None = None  # set when the client has closed its side
        self._lingered: asyncio.Future[None] | None = None  # set when lingering ends
        self._discarded = 0  # bytes received while lingering
        self._speaks = True  # the head of a request is due
        self._unread = Unread()
        self._since = 0.0  # when it began to be, or when the last request ended
        self._is_between = True  # aiohttp's parser is at the start of a request
        # Since it last was: what came, all of it or only the first head, and how many bytes in all.
        self._start, self._received = b"", 0
        self._held = b""  # a head that is not shown to the parser yet
        self.tenant: Tenant | None = None  # of the request that is being answered
        self._charged: tuple[Reservation, int] | None = None  # for bytes that wait to be taken

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._since = self._server.now()
        self._transport = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        excess = len(self._server.connections) - self._server.max_connections
        if excess > 0:
            self._refuse(Overloaded("Too many connections are open."), lingers=excess <= _MAX_EXCESS)

    def data_received(self, data: bytes) -> None:
        if self._lingered is not None:
            self._discard(data)
            return
        if self._tunnel is not None:
            self._tunnel.feed_data(data)
            return
        repeats = self._server.repeats
        if self._is_between and repeats is not None and self.is_idle:
            if (answer := repeats.answer_whole(self._held + data, self)) is not None:
                self._held = b""
                self._write(answer)
                return
            if not self._held and repeats.begins(data):
                self._hear(data)
                self._held = data
                return
        self._release()
        self._feed(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._uncharge()
        super().connection_lost(exc)
        self._transport = None
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def eof_received(self) -> bool | None:  # type: ignore[override] # aiohttp's returns None where asyncio takes a bool
        """The client sends no more. The result is whether the connection stays open for responses."""
        if self._lingered is not None or (self._tunnel is None and not self._is_answering()):
            return None
        self._half_closed = HalfClosed(self._server.now())
        if self._tunnel is not None:
            self._tunnel.feed_eof()
        else:
            self._probe()
        return True

    def _is_answering(self) -> bool:
        """Whether a response is due to a request that is here in full."""
        if self.has_queued_requests:
            return self.is_last_queued_complete
        return self._is_busy and self._has_whole_body()

    def _has_whole_body(self) -> bool:
        return self._content is None or self._content.is_eof()

    def _probe(self) -> bool:
        """Send an interim response, which clients skip (RFC 9110 §15.2), to see if the client is still there.

        False if there can be none: HTTP/1.0 has no such thing, and it must come before the response.
        """
        request = self._request
        if request is None or request.version < HttpVersion11 or request.writer.output_size or self._transport is None:
            return False
        self._transport.write(_CONTINUE)
        # The kernel of a client on this machine reacts at once. A sweep sees what comes later.
        self._server.loop.call_soon(self._abort_if_reset)
        return True

    def _abort_if_reset(self) -> None:
        if self._transport is not None and is_reset(self._transport):
            self._transport.abort()

    def take_over(self, tunnel: Tunnel) -> None:
        """Show all that comes from now on, and what came behind the request, to ``tunnel``."""
        self._tunnel, self._is_last = tunnel, True
        self.set_parser(tunnel)  # type: ignore[arg-type] # of which it calls what `Tunnel` has
        if self._half_closed is not None:
            tunnel.feed_eof()

    def _release(self) -> None:
        """Show the parser what was held, by itself: of what it is shown at once it drops what precedes an error."""
        if self._held:
            held, self._held = self._held, b""
            self._feed(held)

    def _feed(self, data: bytes) -> None:
        if self._is_between and data:
            self._is_between, self._received = False, 0
            self._start = data if len(data) <= MAX_WHOLE_BYTES else head_of(data)
        elif len(self._start) == self._received and self._received + len(data) <= MAX_WHOLE_BYTES:
            self._start += data
        self._received += len(data)
        self._hear(data)
        super().data_received(data)
        self._break_body()

    def _break_body(self) -> None:
        """Fail the body that is being read if the parser failed in it. aiohttp queues the error behind the request and
        would let the handler wait for the rest, which can't come."""
        if self._request is None or self._request.content.is_eof():
            return
        if self.has_queued_error:
            self._is_last = True
            self._request.content.set_exception(RequestPayloadError())

    def _hear(self, data: bytes) -> None:
        # Some clients send an empty line after a body (RFC 9112 §2.2).
        if not (self._is_busy or self._speaks) and data.strip(b"\r\n"):
            self._speaks, self._since = True, self._server.now()

    def pause_writing(self) -> None:
        """More waits to be taken than the transport likes. Nothing further is answered until it has been taken."""
        super().pause_writing()
        if self.tenant is None or self._transport is None or self._server.reserve is None:
            return
        memory, size = self._server.reserve(self.tenant), self._transport.get_write_buffer_size()
        try:
            memory.take(size)
        except Overloaded:
            self._transport.abort()
        else:
            self._charged = memory, size

    def resume_writing(self) -> None:
        self._uncharge()
        super().resume_writing()

    def _uncharge(self) -> None:
        if self._charged is not None:
            memory, size = self._charged
            memory.give_back(size)
            self._charged = None

    def _write(self, answer: Sequence[bytes]) -> None:
        self._speaks, self._since = False, self._server.now()
        if self.transport is not None:
            self.transport.writelines(answer)

    def began(self, request: web.BaseRequest) -> None:
        self._is_busy, self._speaks, self._request, self._content = True, False, request, request.content
        if self._half_closed is not None:
            self._probe()
        self._break_body()

    def _ended(self, request: web.BaseRequest) -> None:
        self._is_busy, self._since, self._request = False, self._server.now(), None
        self._is_between = self._is_alone(request)
        self._start = b""

    def whole(self, request: web.BaseRequest) -> bytes | None:
        """The request that is being answered as it was sent, head and all, if it came by itself and is short."""
        return self._start if self._is_alone(request) and len(self._start) == self._received else None

    def _is_alone(self, request: web.BaseRequest) -> bool:
        """Whether all that came since the request began is that request. Chunks, whose length is nowhere told, are not
        counted, nor is what begins with empty lines, of which the parser skips any number."""
        head = self._start.find(HEAD_END)
        return (
            head > 0
            and self._start[0] not in b"\r\n"
            and self._received == head + len(HEAD_END) + (request.content_length or 0)
            and "Transfer-Encoding" not in request.headers
            and not self.is_upgraded
        )

    def sweep(self, now: float) -> None:
        """Close the connection if the client has been silent, or has taken nothing, for too long."""
        transport = self._transport
        if transport is None:
            return
        self._unread.look(transport, now)
        if self._unread.is_overdue(now) or self._has_client_left(transport, now):
            transport.abort()  # to close it would wait for it all to be read
            return
        if self._unread.size and not self._speaks:
            self._since = now  # a connection is neither idle nor lingering before the response has been taken
        if self._lingered is not None:
            if now - self._since > _LINGER_S:
                self._end_lingering()
            return
        self._release()
        if self._is_busy or transport.is_closing():
            return
        if self._speaks and now - self._since > _HEAD_TIMEOUT_S:
            self._refuse(RequestTimeout("The head of the request did not come in time."))
        elif now - self._since > _IDLE_TIMEOUT_S:
            self.force_close()

    def _has_client_left(self, transport: asyncio.Transport, now: float) -> bool:
        """Whether the client closed its side because it has left."""
        if self._half_closed is None or self._tunnel is not None:
            return False
        written = 0 if self._request is None else self._request.writer.output_size
        self._half_closed.look(now, written=written, unread=self._unread.size)
        if self._half_closed.is_overdue(now):
            if not self._probe():
                return True
            self._half_closed.probed(now)
        return is_reset(transport)

    def retire(self) -> None:
        """Respond to the request that has begun, if any, and then close the connection."""
        self._is_retired = True
        self.keep_alive(False)
        self._release()
        is_responding = self._is_busy or self.has_queued_requests or self._lingered is not None
        if not is_responding and self._has_whole_body():  # aiohttp reads the rest of a body after its response
            self.force_close()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """Wait until the client has taken the last response, for at most ``timeout`` seconds.

        aiohttp's own begins by ignoring what still comes of a request, and does not wait for the response to be sent.
        """
        if self._transport is not None:
            self._lost = self._server.loop.create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._lost
        await super().shutdown(_CANCEL_S)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The response to what could not be parsed, or to a handler that failed. aiohttp's own quotes the request."""
        if request.writer.output_size:
            raise ConnectionError  # part of a response is out already
        self._is_last = True
        if isinstance(exc, HttpProcessingError):
            error = malformed.error_of(exc)
        else:
            _log.error("a request failed outside its handler: %s", type(exc).__name__)
            error = ProxyError("The proxy failed; its log says how.")
        response = web.Response(status=error.status, body=error.body(), content_type="application/json")
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self._is_last or self._is_retired or (self._half_closed is not None and not self.has_queued_requests):
            resp.force_close()
        try:
            resp, is_reset = await super().finish_response(request, resp, start_time)
            if self._is_last and not is_reset:
                await self._linger()
        finally:
            self._ended(request)
        return resp, is_reset

    def _linger(self) -> asyncio.Future[None]:
        """Let the client read the response before the connection is closed (RFC 9112 §9.6).

        To close a socket with unread input resets the connection, and a reset can destroy what the client has not read
        yet. So only the writing side is shut down at first; what still comes is discarded until the client closes, for
        a bounded time and amount.
        """
        self._lingered = self._server.loop.create_future()
        self._since = self._server.now()
        transport = self.transport
        if transport is None or transport.is_closing() or self._half_closed is not None:
            self.force_close()
        else:
            shut_down(transport)
            transport.resume_reading()  # back-pressure may have paused it
        return self._lingered

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > _LINGER_BYTES:
            self._end_lingering()

    def _end_lingering(self) -> None:
        if self.transport is not None:
            self.transport.abort()  # to close it would wait for what is still unread of the response
        self.force_close()

    def force_close(self) -> None:
        if self._lingered is not None and not self._lingered.done():
            self._lingered.set_result(None)
        if self._tunnel is not None:
            self._tunnel.go_away()
        super().force_close()

    def _refuse(self, error: ProxyError, *, lingers: bool = True) -> None:
        body = error.body()
        retry = "" if error.retry_after_s is None else f"Retry-After: {error.retry_after_s}\r\n"
        head = (
            f"HTTP/1.1 {error.status} {error.code}\r\nContent-Type: application/json\r\n{retry}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        if self.transport is not None:
            self.transport.write(head.encode() + body)
        if lingers:
            self._linger()
        else:
            self.force_close()


class Server(web.Server):
    """aiohttp's server without its application layer, which a proxy has no use for and which costs a hit 15 %."""

    def __init__(
        self,
        handler: Handler,
        *,
        max_connections: int,
        repeats: FastPath | None = None,
        reserve: Callable[[Tenant], Reservation] | None = None,
        clock: Callable[[], float] | None = None,
        handler_cancellation: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(handler, request_factory=self._receive, handler_cancellation=handler_cancellation)
        self.loop = asyncio.get_running_loop()
        self._options = options
        self.repeats = repeats
        self.reserve = reserve
        self.max_connections = max_connections
        self.now = clock or self.loop.time

    def __call__(self) -> RequestHandler:
        # aiohttp would close what to it is idle for an hour, while it is answered without it.
        return Connection(self, loop=self.loop, keepalive_timeout=_NEVER_S, **self._options)

    def pre_shutdown(self) -> None:
        for connection in self._all:
            connection.retire()

    @property
    def _all(self) -> list[Connection]:
        return cast("list[Connection]", self.connections)  # there are no others

    def _receive(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        connection: RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        if message is ERROR:  # which stands for what could not be parsed, as if it were HTTP/1.0
            message = message._replace(version=HttpVersion11)
        # Of what follows a request to upgrade in the same packet, aiohttp drops all but the tail of a WebSocket's:
        # the rest of a request cut in two by that would pass for one of its own.
        if message.upgrade and message.headers.get("Upgrade", "").lower() != "websocket":
            message = message._replace(should_close=True)
        request = web.BaseRequest(message, payload, connection, writer, task, self.loop)
        assert isinstance(connection, Connection)  # noqa: S101 - there are no others
        connection.began(request)
        return request

    def sweep(self) -> None:
        now = self.now()
        for connection in self._all:
            connection.sweep(now)


async def paced(content: StreamReader, *, now: Callable[[], float] | None = None) -> AsyncIterator[bytes]:
    """The chunks of a request's body as they come. Raises `RequestTimeout` when they come too slowly, and
    `InvalidRequest` when they are not framed as the head said.

    Only the waiting for the client counts, not what is done with a chunk.
    """
    now = now or asyncio.get_running_loop().time
    waited_s, received = 0.0, 0
    while not content.at_eof():
        allowed_s = _BODY_GRACE_S + received / _MIN_BODY_BYTES_A_SECOND - waited_s
        started = now()
        try:
            async with asyncio.timeout(min(max(0.0, allowed_s), _BODY_SILENCE_S)):
                chunk = await content.readany()
        except TimeoutError:
            raise RequestTimeout("The body of the request did not come in time.") from None
        except RequestPayloadError:
            raise InvalidRequest("The request body is not framed as its headers say.") from None
        waited_s += now() - started
        received += len(chunk)
        if chunk:
            yield chunk
