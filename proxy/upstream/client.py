"""The HTTP client towards the upstream: one call, and what it answered."""

import asyncio
import io
import logging
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from aiohttp import (
    BaseConnector,
    ClientConnectionResetError,
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientPayloadError,
    ClientResponse,
    ClientResponseError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    ServerDisconnectedError,
    TraceConfig,
)
from aiohttp.connector import Connection
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.breaker import Breaker, State
from proxy.errors import Overloaded, ProxyError, UpstreamDown, UpstreamUnreachable
from proxy.protocol import embedding_response
from proxy.protocol.embedding_response import InvalidEmbeddingResponse
from proxy.protocol.headers import reason_phrase
from proxy.protocol.targets import loggable_path, resolve
from proxy.telemetry.metrics import Metrics
from proxy.upstream.aiohttp_seam import disable_retries, has_idle_connections
from proxy.upstream.egress import DIRECT, Egress
from proxy.upstream.flow_control import ResponseFlow
from proxy.upstream.outbound import Outbound
from proxy.upstream.urls import Routes

_log = logging.getLogger(__name__)

# aiohttp would add each of these to a request that lacks it.
_NO_AUTO_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
# Each is a file descriptor, of which a process has 1024 by default on many a system.
_MAX_STREAMS = 512
_MAX_CONNECT_FAILURES = 5
_COOLDOWN_S = 2.0
# 2048 items of 4096 numbers, written out at full length, are 180 MiB.
_MAX_ANSWER_BYTES = 512 * 1024 * 1024
# What an answer's head may hold: no less than a client's of its own would take.
_MAX_FIELD_BYTES, _MAX_FIELDS = 64 * 1024, 1024
_LAST_STATUS = 599  # RFC 9110 §15
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LOCATIONS = ("Location", "Content-Location")  # RFC 9110 §10.2.2, §8.7


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamResponse:
    """An upstream's answer, whole and as it came, so that it can be relayed."""

    status: int
    reason: str
    headers: CIMultiDictProxy[str]
    body: bytes

    def impersonal(self) -> Self:
        """The same for a client that is not the one it was given to."""
        if "Set-Cookie" not in self.headers:
            return self
        headers = self.headers.copy()
        headers.popall("Set-Cookie")
        return replace(self, headers=CIMultiDictProxy(headers))

    def plain_body(self) -> bytes:
        """The body without its content coding. Raises `InvalidEmbeddingResponse` for one that can't be undone."""
        coding = self.headers.get("Content-Encoding", "identity").lower()
        if coding == "identity":
            return self.body
        if coding not in {"gzip", "deflate"}:
            raise InvalidEmbeddingResponse("content-encoding")
        try:
            inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
            plain = inflater.decompress(self.body, _MAX_ANSWER_BYTES)
        except zlib.error:
            raise InvalidEmbeddingResponse("content-encoding") from None
        if not inflater.eof:
            raise InvalidEmbeddingResponse("content-encoding")
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The SDKs wait 600 s for an answer's next byte; who waits less than they do fails requests they would not."""

    connect_s: float = 10.0
    read_s: float = 600.0  # between two reads, the first byte among them
    total_s: float = 600.0  # one embeddings call; other routes may stream for hours


class UpstreamClient:
    """Connections to the upstream. Nothing a client sends chooses where they go: callers pass URLs of `Routes`."""

    def __init__(
        self,
        name: str,
        connect: Callable[[bool], BaseConnector],
        metrics: Metrics,
        *,
        timeouts: Timeouts,
        routes: Routes,
        egress: Egress = DIRECT,
    ) -> None:
        """``connect`` makes a connector; the argument says whether it keeps connections for further requests.

        Raises `ConfigError` for files of ``egress`` that can't be used.
        """
        self._name = name
        self._routes = routes
        self._has_told_redirect = False
        self.outbound = Outbound(name, egress)
        self._metrics = metrics
        self._seconds = metrics.upstream_seconds.labels(name)
        self._timeouts = timeouts
        self._last_failure = ""
        self._is_refused = False
        self.has_answered = False  # 200, ever
        self._metrics.breaker(f"upstream {name}", State.CLOSED.value)
        self._breaker = Breaker(
            max_failures=_MAX_CONNECT_FAILURES,
            cooldown_s=_COOLDOWN_S,
            clock=time.monotonic,
            on_change=self._on_breaker,
        )
        # Streams that stay open for hours must not take the connections that embeddings calls need. The batcher bounds
        # the number of those.
        self._stream_slots = asyncio.Semaphore(_MAX_STREAMS)
        # Separate pools: whatever a stream leaves on a connection never reaches an embeddings call.
        self._calls = self._open_session(connect(True))
        self._streams = self._open_session(connect(True))
        self._unpooled = self._open_session(connect(False))  # each request gets a new connection

    def _open_session(self, connector: BaseConnector) -> ClientSession:
        # `connect` covers all of it: the name, TCP, TLS, and a forward proxy that is slow to answer CONNECT.
        timeout = ClientTimeout(total=None, connect=self._timeouts.connect_s, sock_read=self._timeouts.read_s)
        session = ClientSession(
            connector=connector,
            response_class=_FinalResponse,
            # A cookie of one client must not travel with another's request.
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NO_AUTO_HEADERS,
            timeout=timeout,
            trace_configs=[_tells_connection()],
            trust_env=False,
            max_line_size=_MAX_FIELD_BYTES,
            max_field_size=_MAX_FIELD_BYTES,
            max_headers=_MAX_FIELDS,
        )
        disable_retries(session)  # `_begin` resends a request of any method, and on a new connection
        return session

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in (self._calls, self._streams, self._unpooled):
            await session.close()

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, headers: CIMultiDict[str], body: Any
    ) -> AsyncIterator[ClientResponse]:
        """Send a request and wait for the response's head. The caller reads the rest within the block.

        The response to a request with ``Upgrade`` may be a 101. Raises `UpstreamUnreachable`, `UpstreamTimeout`, or
        `Overloaded` if too many streams are open.
        """
        attempt = _Attempt()
        async with self._stream_slot():
            try:
                response = await self._begin(self._streams, method, url, headers, body, attempt=attempt)
            except (ClientError, TimeoutError, OSError) as error:
                raise self.outbound.mapped(error, is_connected=attempt.is_connected) from error
            if response.status in _REDIRECTS and method == "POST":
                self._tell_redirect(url, response)
            async with response:
                yield response

    @asynccontextmanager
    async def _stream_slot(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                await self._stream_slots.acquire()
        except TimeoutError:
            raise Overloaded("Too many requests are being relayed to the upstream.") from None
        try:
            yield
        finally:
            self._stream_slots.release()

    def relocate(self, url: str, headers: CIMultiDict[str]) -> None:
        """Change an answer's fields so that a location at the upstream leads a client through this proxy. ``url`` is
        what the answer is to. A location that no path of this proxy leads to is left out."""
        for name in _LOCATIONS:
            for location in headers.popall(name, ()):
                target = self._routes.target_of(url, location)
                if target is not None:
                    headers.add(name, target)

    def _tell_redirect(self, url: str, response: ClientResponse) -> None:
        location = response.headers.get("Location", "")
        advice = self._routes.advice(url, location)
        if advice is not None and not self._has_told_redirect:
            self._has_told_redirect = True
            there = resolve(url, location)
            _log.warning(
                "upstream %s redirects embeddings calls (%d, to %s%s) and redirects are not followed: %s (said once)",
                self._name,
                response.status,
                there._replace(path="").address,
                loggable_path(there.path),  # the client's own path may be in it
                advice,
            )

    async def _begin(
        self,
        session: ClientSession,
        method: str,
        url: str,
        headers: CIMultiDict[str],
        body: Any,
        *,
        attempt: "_Attempt",
    ) -> ClientResponse:
        """Send, and wait for the response's head. If a kept connection broke before its first byte, send once more.

        An upstream closes idle connections when it likes, and that may cross the request on the way (RFC 9112 §9.3.1).
        Often several are dead at once, as after a restart of a load balancer, so the second attempt is on a new
        connection. If that breaks too, the request itself may be the reason. A body that is streamed can't be sent
        twice, so it goes on a new connection from the start.
        """
        headers = self.outbound.fields(url, headers)

        async def send(session: ClientSession) -> ClientResponse:
            attempt.is_connected = False
            # A body in hand goes out in pieces; aiohttp warns of megabytes in one.
            data = io.BytesIO(body) if isinstance(body, bytes) else body
            return await session.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=data,
                allow_redirects=False,
                trace_request_ctx=attempt,
                **self.outbound.options(url),
            )

        is_repeatable = body is None or isinstance(body, bytes)
        try:
            response = await send(session if is_repeatable else self._unpooled)
        except ClientError as error:
            if not (is_repeatable and attempt.is_reused and _broke_unanswered(error)):
                raise
            response = await send(self._unpooled if _keeps_connections(session) else session)
        try:
            self.outbound.require_proxy_login(url, response.status)
        except UpstreamUnreachable:
            response.close()
            raise
        return response

    async def embed(
        self, url: str, headers: CIMultiDict[str], body: bytes, *, items: int, flow: ResponseFlow
    ) -> UpstreamResponse:
        """One embeddings call of ``items`` items, whose response is read as fast as ``flow`` takes it.

        Raises `ProxyError`, `UpstreamDown` while the circuit is open.
        """
        if not self._breaker.allows():
            raise UpstreamDown("The upstream can't be connected to; it is tried again in a moment.")
        headers = headers.copy()
        headers["Accept-Encoding"] = "identity"  # the answer is to be read here
        started = time.perf_counter()
        self._metrics.upstream_batch_items.observe(items)
        # Being connected is all the breaker asks for: what comes then may be about this one request.
        attempt = _Attempt(self._connected)
        try:
            async with asyncio.timeout(self._timeouts.total_s):
                response = await self._begin(self._calls, "POST", url, headers, body, attempt=attempt)
                async with response:
                    content = await _read(response, flow)
        except (ClientError, TimeoutError, OSError) as error:
            if not attempt.is_connected and self.outbound.is_unconnected(error):
                self._note_unconnected(error)
            else:
                self._breaker.abandoned()
                if self.outbound.is_refusal(error):
                    self._say_refused(self.outbound.described(error))
            raise self._counted(self.outbound.mapped(error, is_connected=attempt.is_connected)) from error
        except UpstreamUnreachable as error:  # the forward proxy's answer
            self._breaker.abandoned()
            self._say_refused(error.message)
            raise self._counted(error) from None
        except BaseException:
            self._breaker.abandoned()
            raise
        self._is_refused = False
        if response.status == HTTPStatus.OK:
            self.has_answered = True
        elif response.status in _REDIRECTS:
            self._tell_redirect(url, response)
        took_s = time.perf_counter() - started
        self._seconds.observe(took_s)
        self._metrics.stage_seconds["upstream"].observe(took_s)
        self._metrics.upstream_answers.labels(self._name, _status_label(response.status, content)).inc()
        reason = reason_phrase(response.reason)
        fields = response.headers
        if any(name in fields for name in _LOCATIONS):
            changed = fields.copy()
            self.relocate(url, changed)
            fields = CIMultiDictProxy(changed)
        return UpstreamResponse(status=response.status, reason=reason, headers=fields, body=content)

    def _note_unconnected(self, error: Exception) -> None:
        described = self.outbound.described(error, is_connected=False)
        if not self._last_failure:
            _log.warning("upstream %s can't be connected to: %s", self._name, described)
        self._last_failure = described
        self._breaker.failed()

    def _say_refused(self, described: str) -> None:
        """Say once, until there is an answer, what a connection was good for."""
        if not self._is_refused:
            _log.warning("upstream %s refuses connections: %s", self._name, described)
        self._is_refused = True

    def _counted(self, error: ProxyError) -> ProxyError:
        self._metrics.upstream_answers.labels(self._name, error.code.removeprefix("upstream_")).inc()
        return error

    def _connected(self) -> None:
        self._last_failure = ""
        self._breaker.succeeded()

    def _on_breaker(self, state: State) -> None:
        self._metrics.breaker(f"upstream {self._name}", state.value)
        if state is State.OPEN:
            _log.warning(
                "upstream %s is given up (%s); trying again every %g s", self._name, self._last_failure, _COOLDOWN_S
            )
        elif state is State.CLOSED:
            _log.warning("upstream %s can be connected to again", self._name)


@dataclass(slots=True)
class _Attempt:
    """How far a request has come."""

    on_connected: Callable[[], None] = lambda: None
    is_connected: bool = False
    is_reused: bool = False  # its connection was kept from an earlier one


def _broke_unanswered(error: ClientError) -> bool:
    """Whether a request's connection broke, and no byte of a response had come."""
    if isinstance(error, ServerDisconnectedError):
        return isinstance(error.message, str)  # else it is the part of the head that had come
    return isinstance(error, ClientOSError | ClientConnectionResetError) and not isinstance(error, ClientConnectorError)


def _status_label(status: int, body: bytes) -> str:
    """The status that an answer is counted under. Where a 200 is an error (OpenRouter), its code is any integer."""
    if status != HTTPStatus.OK or not embedding_response.is_error(body):
        return str(status)
    code = embedding_response.error_status(body)
    if code < HTTPStatus.BAD_REQUEST:
        return "400"
    return str(code) if code <= _LAST_STATUS else "500"


class _FinalResponse(ClientResponse):
    """A response with a status that can be one to the request.

    None has a status below 100 (RFC 9110 §15), and a 101 is only for a request with ``Upgrade`` (§15.2.2). aiohttp
    takes these for responses without a body, and would keep the connection for other requests.
    """

    async def start(self, connection: Connection) -> ClientResponse:
        protocol = connection.protocol
        await super().start(connection)
        if self.status >= HTTPStatus.OK or protocol is None:
            return self
        if (
            self.status == HTTPStatus.SWITCHING_PROTOCOLS
            and protocol.upgraded
            and "Upgrade" in self.request_info.headers
        ):
            return self
        protocol.close()
        raise ClientResponseError(self.request_info, (), status=self.status)


def _keeps_connections(session: ClientSession) -> bool:
    """Whether the next request might go on a kept connection; if not, its new one may be kept."""
    connector = session.connector
    return connector is not None and has_idle_connections(connector)


def _tells_connection() -> TraceConfig:
    """Tells a request's `_Attempt` that it has a connection."""
    config = TraceConfig()

    def told(attempt: _Attempt, *, is_reused: bool) -> None:
        attempt.is_connected, attempt.is_reused = True, is_reused
        attempt.on_connected()

    async def on_new(_session: ClientSession, context: SimpleNamespace, _params: object) -> None:
        told(context.trace_request_ctx, is_reused=False)

    async def on_reuse(_session: ClientSession, context: SimpleNamespace, _params: object) -> None:
        told(context.trace_request_ctx, is_reused=True)

    config.on_connection_create_end.append(on_new)
    config.on_connection_reuseconn.append(on_reuse)
    return config


async def _read(response: ClientResponse, flow: ResponseFlow) -> bytes:
    body = io.BytesIO()  # which in the end needs no copy: one of a large body would keep the event loop waiting
    async for chunk in response.content.iter_any():
        body.write(chunk)
        await flow.received(len(chunk))
        if body.tell() > _MAX_ANSWER_BYTES:
            raise ClientPayloadError("an answer without end")
    return body.getvalue()
