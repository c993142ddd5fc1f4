"""The HTTP server's side of connections: how many there may be, and how long each may take.

aiohttp waits for ever for a head that does not come, so whoever opens connections and says little has them all.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from aiohttp import HttpVersion11, StreamReader, http_parser, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import ERROR, RequestHandler, RequestPayloadError

from proxy import malformed
from proxy.errors import ConfigError, InvalidRequest, Overloaded, ProxyError, RequestTimeout

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
# How long what was written may wait for a client that takes none of it.
_UNREAD_TIMEOUT_S = 60.0
# And this long between two bytes, or a fast start would earn hours of silence.
_BODY_SILENCE_S = 30.0
# How long, and for how much, a connection that is to be closed discards what its client still sends (see `_linger`).
_LINGER_S = 5.0
_LINGER_BYTES = 1024 * 1024
# Connections over the limit that may linger: each is a file descriptor that the limit does not count.
_MAX_EXCESS = 64


def shut_down(transport: asyncio.Transport) -> None:
    """Close the writing side, where that can be done without the other."""
    if transport.can_write_eof():
        with suppress(OSError):  # the peer has reset the connection, which the transport learns in a moment
            transport.write_eof()


def head_of(sent: bytes) -> bytes:
    """The head that these bytes begin with, its end included; a few bytes that are none where there is no end."""
    return sent[: sent.find(HEAD_END) + len(HEAD_END)]


class Repeats(Protocol):
    """Who knows requests by nothing but their bytes."""

    def answer_whole(self, sent: bytes) -> Sequence[bytes] | None:
        """The answer to a request of just these bytes, head and all; None: it must be read."""
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


class Connection(RequestHandler):
    """One connection. Times are those of the loop's clock.

    Between two requests, when aiohttp has seen the last byte of the one and none of the other, what comes is shown to
    `Repeats` first. It is an answer only for a whole request that aiohttp, too, would have taken for one, since such a
    one was seen there to be just as long. Clients send head and body apart, so a head that is known waits for the next
    bytes, or for the next sweep.
    """

    __slots__ = (
        "_discarded",
        "_has_eof",
        "_held",
        "_is_between",
        "_is_busy",
        "_is_last",
        "_lingered",
        "_received",
        "_request",
        "_server",
        "_since",
        "_speaks",
        "_start",
        "_tunnel",
        "_unread",
        "_unread_since",
    )

    def __init__(self, manager: "Server", **options: Any) -> None:
        super().__init__(manager, **options)
        self._server = manager
        self._is_busy = False  # with a request whose head is here
        self._request: web.BaseRequest | None = None  # that request
        self._is_last = False  # what comes can't be parsed: the next response is the last one
        self._tunnel: Tunnel | None = None
        self._has_eof = False  # the client of a tunnel has closed its side
        self._lingered: asyncio.Future[None] | None = None  # set when lingering ends
        self._discarded = 0  # bytes received while lingering
        self._speaks = True  # the head of a request is due
        self._unread, self._unread_since = 0, 0.0  # bytes that wait to be taken, and since when it is just as many
        self._since = 0.0  # when it began to be, or when the last request ended
        self._is_between = True  # aiohttp's parser is at the start of a request
        # Since it last was: what came, all of it or only the first head, and how many bytes in all.
        self._start, self._received = b"", 0
        self._held = b""  # a head that is not shown to the parser yet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._since = self._server.now()
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
        if self._is_between and repeats is not None and self._is_waiting():
            if (answer := repeats.answer_whole(self._held + data)) is not None:
                self._held = b""
                self._write(answer)
                return
            if not self._held and repeats.begins(data):
                self._hear(data)
                self._held = data
                return
        self._release()
        self._feed(data)

    def eof_received(self) -> bool | None:  # type: ignore[override] # aiohttp's returns None where asyncio takes a bool
        if self._tunnel is None or self._lingered is not None:
            return None  # the transport closes
        self._has_eof = True
        self._tunnel.feed_eof()
        return True

    @property
    def is_upgraded(self) -> bool:
        """Whether the parser stopped behind a request to upgrade, at whose answer the connection may be taken over."""
        return self._upgraded

    def take_over(self, tunnel: Tunnel) -> None:
        """Show all that comes from now on, and what came behind the request, to ``tunnel``."""
        self._tunnel, self._is_last = tunnel, True
        self.set_parser(tunnel)  # type: ignore[arg-type] # of which it calls what `Tunnel` has

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
        if self._messages and not isinstance(self._messages[-1][0], http_parser.RawRequestMessage):
            self._is_last = True
            self._request.content.set_exception(RequestPayloadError())

    def _hear(self, data: bytes) -> None:
        # Some clients send an empty line after a body (RFC 9112 §2.2).
        if not (self._is_busy or self._speaks) and data.strip(b"\r\n"):
            self._speaks, self._since = True, self._server.now()

    def _is_waiting(self) -> bool:
        """Whether every request has been answered, and an answer may be written now."""
        waiter = self._waiter
        return waiter is not None and not (waiter.done() or self.writing_paused or self._close or self._force_close)

    def _write(self, answer: Sequence[bytes]) -> None:
        self._speaks, self._since = False, self._server.now()
        if self.transport is not None:
            self.transport.writelines(answer)

    def began(self, request: web.BaseRequest) -> None:
        self._is_busy, self._speaks, self._request = True, False, request
        self._break_body()

    def ended(self, request: web.BaseRequest) -> None:
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
            and not self._upgraded
        )

    def sweep(self, now: float) -> None:
        """Close the connection if it has been silent for too long."""
        self._sweep_unread(now)
        if self._lingered is not None:
            if now - self._since > _LINGER_S:
                self._end_lingering()
            return
        self._release()
        if self._is_busy:
            return
        if self._speaks and now - self._since > _HEAD_TIMEOUT_S:
            self._refuse(RequestTimeout("The head of the request did not come in time."))
        elif now - self._since > _IDLE_TIMEOUT_S:
            self.force_close()

    def _sweep_unread(self, now: float) -> None:
        transport = self.transport
        unread = 0 if transport is None else transport.get_write_buffer_size()
        if unread == 0 or unread != self._unread:
            self._unread, self._unread_since = unread, now
        elif transport is not None and now - self._unread_since > _UNREAD_TIMEOUT_S:
            transport.abort()  # to close it would wait for it all to be read

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
        if self._is_last and not resp.prepared:
            resp.force_close()
        resp, is_reset = await super().finish_response(request, resp, start_time)
        if self._is_last and not is_reset:
            await self._linger()
        return resp, is_reset

    def _linger(self) -> asyncio.Future[None]:
        """Let the client read the response before the connection is closed (RFC 9112 §9.6).

        To close a socket with unread input resets the connection, and a reset can destroy what the client has not read
        yet. So only the writing side is shut down at first; what still comes is discarded until the client closes, for
        a bounded time and amount.
        """
        self._lingered = self._loop.create_future()
        self._since = self._server.now()
        transport = self.transport
        if transport is None or transport.is_closing() or self._has_eof:
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
        repeats: Repeats | None = None,
        clock: Callable[[], float] | None = None,
        **options: Any,
    ) -> None:
        # aiohttp would close what to it is idle for an hour, while it is answered without it.
        super().__init__(self._tracked, keepalive_timeout=_NEVER_S, **options)
        self.repeats = repeats
        self.max_connections = max_connections
        self.now = clock or asyncio.get_running_loop().time
        self._handler = handler

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    def _make_request(self, message: Any, *others: Any) -> web.BaseRequest:
        if message is ERROR:  # which stands for what could not be parsed, as if it were HTTP/1.0
            message = message._replace(version=HttpVersion11)
        # Of what follows a request to upgrade in the same packet, aiohttp drops all but the tail of a WebSocket's:
        # the rest of a request cut in two by that would pass for one of its own.
        if message.upgrade and message.headers.get("Upgrade", "").lower() != "websocket":
            message = message._replace(should_close=True)
        return super()._make_request(message, *others)

    async def _tracked(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)  # noqa: S101 - there are no others
        connection.began(request)
        try:
            return await self._handler(request)
        finally:
            connection.ended(request)

    def sweep(self) -> None:
        now = self.now()
        for connection in self.connections:
            if isinstance(connection, Connection):
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


def require_strict_parser() -> None:
    """Raises `ConfigError` where aiohttp runs without its compiled HTTP parser, which is the stricter of the two."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise ConfigError(
            "aiohttp is installed without its C parser; install its wheel, and unset AIOHTTP_NO_EXTENSIONS"
        )
