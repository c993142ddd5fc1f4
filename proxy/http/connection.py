"""The requests of one client's connection: which bytes go to the parser, and where one request ends."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from proxy.errors import ProxyError
from proxy.http import malformed
from proxy.http.begun_response import BegunResponse
from proxy.http.error_responses import error_response
from proxy.http.head_template import HeadTemplate
from proxy.http.limited_connection import ConnectionContext
from proxy.http.liveness import HalfClosed
from proxy.http.long_response import LongResponse, Response, WritingConnection
from proxy.http.pending_request import MAX_PENDING_BYTES, PendingRequest
from proxy.http.recorder import HEAD_END, RequestRecorder
from proxy.http.upgrade import UpgradeHandler

_log = logging.getLogger(__name__)

# A coroutine that may be cancelled until it sets `Connection.begun`. If it is cancelled or returns None, the request is
# parsed.
ResponseLater = Coroutine[Any, Any, Response | LongResponse | None]


class BytesHandler(Protocol):
    """Responds to requests by their raw bytes."""

    def handle_bytes(self, sent: bytes, connection: "Connection") -> Response | LongResponse | ResponseLater | None:
        """The response to a request of exactly these bytes; None: it must be parsed. Sets the connection's tenant."""

    def knows_head(self, sent: bytes) -> bool:
        """Whether these bytes are the head of a request that `handle_bytes` may respond to once its body is here."""


class Connection(WritingConnection):
    """A connection whose bytes may be responded to before they are parsed.

    At a request boundary, while no response is due, bytes go to the `BytesHandler` first. It responds to a complete
    request only if the parser has seen the same bytes before and found their end there, or the same head but for the
    values that `HeadTemplate` lets differ. Why this is safe: docs/adr/0003-bytes-before-the-parser.md.

    At most one of these is set, and `parse_pending` ends each:

    - ``_early``: bytes, until aiohttp's task has resumed after the last response, in the next iteration of the loop
    - ``_pending`` without a response: a known head, until its body arrives, at most until the next sweep
    - ``_pending`` with one: a request, until the response is ready; at most until the next sweep, unless it has begun
    - ``_rest`` (of the base): what is left of a long response, until that is written
    """

    __slots__ = (
        "_bytes_handler", "_early", "_is_last", "_pending", "_recorder", "_upgrade_handler", "begun", "known_head",
    )  # fmt: skip

    def __init__(
        self, server: web.Server, context: ConnectionContext, bytes_handler: BytesHandler | None, **options: Any
    ) -> None:
        super().__init__(server, context, **options)
        self._bytes_handler = bytes_handler
        self._recorder = RequestRecorder()
        self._early = b""
        self._pending: PendingRequest | None = None
        # The response to that request once it has begun, until its handler takes it. A `ResponseLater` sets this.
        self.begun: BegunResponse | None = None
        self.known_head: HeadTemplate | None = None  # of requests that `BytesHandler` may respond to; it sets this
        self._is_last = False  # the next response is the last one: nothing after it can be parsed
        self._upgrade_handler: UpgradeHandler | None = None

    @property
    def is_busy(self) -> bool:
        return self._request is not None or self.begun is not None or self._rest is not None

    def take_begun(self) -> BegunResponse | None:
        """The response that the current request began before it was parsed, or None. It can be taken once, and the
        caller that takes it must end and count it."""
        begun, self.begun = self.begun, None
        return begun

    def data_received(self, data: bytes) -> None:
        if self._early:
            self._early += data
        elif self._is_early():
            self._early = data
            self._context.loop.call_soon(self._receive_early)
        else:
            self._receive(data)

    def _is_early(self) -> bool:
        """Whether the last response is written, but aiohttp's task that waits for the next request has not resumed.

        A client nearby always sends its next request before that task resumes. If those bytes did not wait for it, then
        after one parsed request all later ones of that client would be parsed, too.
        """
        return (
            self._bytes_handler is not None
            and self._recorder.at_boundary
            and not (self.is_idle or self.is_busy or self._pending)
            and self._lingering is None
        )

    def _receive_early(self) -> None:
        early, self._early = self._early, b""
        if early:
            self._receive(early)

    def _receive(self, data: bytes) -> None:
        if self._lingering is not None:
            self._discard(self._lingering, data)
            return
        if self._upgrade_handler is not None:
            self._upgrade_handler.feed_data(data)
            return
        if self._rest is not None:
            self.finish_writing()
        handler = self._bytes_handler
        is_next = self._recorder.at_boundary and self.is_idle and not self._is_responding
        if handler is None or not (is_next and self._respond_unparsed(data, handler)):
            self.parse_pending()
            self._parse(data)

    def _respond_unparsed(self, data: bytes, handler: BytesHandler) -> bool:
        """Respond to a request that ends with ``data``, or wait for the rest of it. False if it has to be parsed."""
        sent, pending = data, self._pending
        if pending is not None:
            if pending.add(data):
                return True
            sent = pending.followed_by(data)
        response = handler.handle_bytes(sent, self)
        if response is None and (pending is not None or not self._keep_beginning(data, handler)):
            return False
        if pending is not None:
            self._take_pending()
        if isinstance(response, (list, LongResponse)):
            self.respond(response)
        elif response is not None:
            task = self._context.loop.create_task(response)
            self._pending = PendingRequest(sent, task)
            task.add_done_callback(self._response_ended)
        else:
            self._time_head(data)
        return True

    @property
    def _is_responding(self) -> bool:
        return self._pending is not None and self._pending.response is not None

    def _response_ended(self, task: "asyncio.Task[Response | LongResponse | None]") -> None:
        if self._pending is not None and self._pending.response is task:
            self._end_pending()

    def _keep_beginning(self, sent: bytes, handler: BytesHandler) -> bool:
        """Keep what begins a request that may get its response without the parser once the rest arrives."""
        head = self.known_head and self.known_head.match(sent)
        size = head.size_bytes + head.body_bytes if head else 0
        if len(sent) < size <= MAX_PENDING_BYTES:
            self._pending = PendingRequest.beginning(sent, size, self.reservation())
        if self._pending is None and sent.endswith(HEAD_END) and handler.knows_head(sent):
            self._pending = PendingRequest(sent)
        return self._pending is not None

    def parse_pending(self) -> None:
        self._end_pending()
        self.finish_writing()

    def _end_pending(self) -> None:
        """Write the response to the pending request if it is ready; otherwise pass its bytes to the parser."""
        sent, response = self._take_pending()
        if response is not None:
            self.respond(response)
        elif sent:
            if self.begun is not None:
                self.begun.hand_over()
            self._parse(sent)  # by themselves: on an error, the parser drops all bytes of the same call

    def _take_pending(self) -> tuple[bytes, Response | LongResponse | None]:
        """The bytes that wait, and the response to them if it is ready. They wait no more."""
        early, self._early = self._early, b""
        pending, self._pending = self._pending, None
        if pending is None:
            return early, None
        return pending.take(), pending.take_response(has_begun=self.begun is not None)

    def parse_overdue(self) -> None:
        if self.begun is None and self._rest is None:
            self.parse_pending()

    def _parse(self, data: bytes) -> None:
        if data:  # aiohttp passes no data to resume a paused parser
            self._recorder.feed(data)
            if self._request is None:
                self._time_head(data)
        super().data_received(data)
        if self._request is not None:
            self._break_body(self._request)

    def _time_head(self, data: bytes) -> None:
        # Some clients send an empty line after a body (RFC 9112 §2.2).
        if not self._timer.awaits_head and data.strip(b"\r\n"):
            self._timer.head_began(self._now())

    def _break_body(self, request: web.BaseRequest) -> None:
        """Fail the body of the current request if the parser failed inside it. The rest can't arrive, but aiohttp only
        queues the error after the request, so the request's handler would wait for the rest."""
        if not request.content.is_eof() and self.has_queued_error:
            self._is_last = True
            request.content.set_exception(RequestPayloadError())

    def began(self, request: web.BaseRequest) -> None:
        """The parser has the head of a request, and its handler is about to be called."""
        self._timer.awaits_head, self._request, self._content = False, request, request.content
        if self._half_closed is not None:
            self._probe()
        self._break_body(request)

    def whole(self, request: web.BaseRequest) -> bytes | None:
        """The current request as it was sent, if it is short and nothing was received after it."""
        return self._recorder.whole(self._body_bytes(request))

    def head(self, request: web.BaseRequest) -> bytes | None:
        """The head of the current request as it was sent, if nothing was received after the request."""
        return self._recorder.head(self._body_bytes(request))

    def _body_bytes(self, request: web.BaseRequest) -> int | None:
        if self.is_upgraded or "Transfer-Encoding" in request.headers:
            return None
        return request.content_length or 0

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
            self._request = None
            self._timer.request_ended(self._now())
            self._recorder.end(self._body_bytes(request))
        return resp, is_reset

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The response to a parser error, or to an error of the handler. aiohttp's own response quotes the request."""
        if request.writer.output_size:
            raise ConnectionError  # part of a response has been sent
        self._is_last = True
        if isinstance(exc, HttpProcessingError):
            error = malformed.error_of(exc)
        else:
            _log.error("unexpected error outside the request handler: %s", type(exc).__name__)
            error = ProxyError("Internal error; see the proxy log.")
        response = error_response(error)
        response.force_close()
        return response

    def upgrade_to(self, handler: UpgradeHandler) -> None:
        """Give ``handler`` all bytes after the request, also those that have arrived already."""
        self._upgrade_handler, self._is_last = handler, True
        self.set_parser(handler)  # type: ignore[arg-type] # it calls only what `UpgradeHandler` has
        if self._half_closed is not None:
            handler.feed_eof()

    def eof_received(self) -> bool | None:  # type: ignore[override] # as in the base
        """The client has closed its side. Returns whether the connection stays open for responses."""
        if self._is_responding or self._early or self._rest is not None:
            self.parse_pending()
        if self._upgrade_handler is None or self._lingering is not None:
            return super().eof_received()
        self._half_closed = HalfClosed(self._now())
        self._upgrade_handler.feed_eof()
        return True

    def has_client_left(self, transport: asyncio.Transport, now: float) -> bool:
        """An upgrade handler finds out by itself."""
        return self._upgrade_handler is None and super().has_client_left(transport, now)

    def force_close(self) -> None:
        if self._upgrade_handler is not None:
            self._upgrade_handler.go_away()
        super().force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._take_pending()
        if (begun := self.take_begun()) is not None:
            begun.abandon()
        super().connection_lost(exc)
