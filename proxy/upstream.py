"""The HTTP client towards the upstream: one call, and what it answered."""

import asyncio
import io
import logging
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from aiohttp import (
    BaseConnector,
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientPayloadError,
    ClientResponse,
    ClientResponseError,
    ClientSession,
    ClientSSLError,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    ServerDisconnectedError,
    TraceConfig,
)
from aiohttp.connector import Connection
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.breaker import Breaker, State
from proxy.errors import ProxyError, UpstreamDown, UpstreamTimeout, UpstreamUnreachable
from proxy.headers import reason_phrase
from proxy.metrics import Metrics
from proxy.reply import InvalidAnswer

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
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
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
        """The body without its content coding. Raises `InvalidAnswer` for one that can't be undone."""
        coding = self.headers.get("Content-Encoding", "identity").lower()
        if coding == "identity":
            return self.body
        if coding not in {"gzip", "deflate"}:
            raise InvalidAnswer("content-encoding")
        try:
            inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
            plain = inflater.decompress(self.body, _MAX_ANSWER_BYTES)
        except zlib.error:
            raise InvalidAnswer("content-encoding") from None
        if not inflater.eof:
            raise InvalidAnswer("content-encoding")
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The SDKs wait 600 s for an answer's next byte; who waits less than they do fails requests they would not."""

    connect_s: float = 10.0
    read_s: float = 600.0  # between two reads, the first byte among them
    total_s: float = 600.0  # one embeddings call; other routes may stream for hours


class Upstream:
    """Connections to the upstream. Nothing a client sends chooses where they go: callers pass URLs of `Routes`."""

    def __init__(
        self, name: str, connect: Callable[[int], BaseConnector], metrics: Metrics, *, timeouts: Timeouts
    ) -> None:
        """``connect`` makes a connector for so many connections, 0 for any number."""
        self._name = name
        self._metrics = metrics
        self._seconds = metrics.upstream_seconds.labels(name)
        self._timeouts = timeouts
        self._last_failure = ""
        self.has_answered = False  # 200, ever
        self._metrics.breaker(f"upstream {name}", State.CLOSED.value)
        self._breaker = Breaker(
            max_failures=_MAX_CONNECT_FAILURES,
            cooldown_s=_COOLDOWN_S,
            clock=time.monotonic,
            on_change=self._on_breaker,
        )
        # Streams that stay open for hours must not take the connections that embeddings calls need. Of these the
        # batcher says how many there are at a time.
        self._calls = self._open_session(
            connect(0), ClientTimeout(total=None, sock_connect=timeouts.connect_s, sock_read=timeouts.read_s)
        )
        self._streams = self._open_session(
            connect(_MAX_STREAMS), ClientTimeout(total=None, connect=timeouts.connect_s, sock_read=timeouts.read_s)
        )

    def _open_session(self, connector: BaseConnector, timeout: ClientTimeout) -> ClientSession:
        return ClientSession(
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._calls.close()
        await self._streams.close()

    async def open(self, method: str, url: str, headers: CIMultiDict[str], body: Any) -> ClientResponse:
        """Send a request and wait for the answer's head; the caller reads and releases the rest.

        The answer to a request with ``Upgrade`` may be a 101. Raises `UpstreamUnreachable` or `UpstreamTimeout`.
        """
        try:
            return await self._begin(self._streams, method, url, headers, body, on_connected=lambda: None)
        except (ClientError, TimeoutError, OSError) as error:
            raise _mapped(error) from error

    async def _begin(
        self,
        session: ClientSession,
        method: str,
        url: str,
        headers: CIMultiDict[str],
        body: Any,
        *,
        on_connected: Callable[[], None],
    ) -> ClientResponse:
        """Send, and wait for the answer's head; once more if a kept connection had died before its first byte.

        An upstream closes idle connections when it likes, and the news may cross our request (RFC 9112 §9.3.1). A body
        that streams through is gone by then and can't be sent again.
        """
        trace: dict[str, Any] = {"on_connected": on_connected}

        async def send() -> ClientResponse:
            # A body in hand goes out in pieces; aiohttp warns of megabytes in one.
            data = io.BytesIO(body) if isinstance(body, bytes) else body
            target = URL(url, encoded=True)
            return await session.request(
                method, target, headers=headers, data=data, allow_redirects=False, trace_request_ctx=trace
            )

        try:
            return await send()
        except (ServerDisconnectedError, ClientOSError) as error:
            if isinstance(error, ClientConnectorError) or not trace.get("is_reused") or not isinstance(body, bytes):
                raise
        return await send()

    async def embed(self, url: str, headers: CIMultiDict[str], body: bytes, *, items: int) -> Answer:
        """One embeddings call of ``items`` items. Raises `ProxyError`, `UpstreamDown` while the circuit is open."""
        if not self._breaker.allows():
            raise UpstreamDown("The upstream can't be connected to; it is tried again in a moment.")
        headers = headers.copy()
        headers["Accept-Encoding"] = "identity"  # the answer is to be read here
        started = time.perf_counter()
        self._metrics.upstream_batch_items.observe(items)
        try:
            async with asyncio.timeout(self._timeouts.total_s):
                # Being connected is all the breaker asks for: what comes then may be about this one request.
                response = await self._begin(self._calls, "POST", url, headers, body, on_connected=self._connected)
                async with response:
                    content = await _read(response)
        except (ClientConnectorError, ConnectionTimeoutError) as error:
            if not self._last_failure:
                # aiohttp calls a connection without TLS "ssl:default".
                _log.warning(
                    "upstream %s can't be connected to: %s", self._name, str(error).replace(" ssl:default", "")
                )
            self._last_failure = str(error) or type(error).__name__
            self._breaker.failed()
            raise self._counted(error) from error
        except (ClientError, TimeoutError, OSError) as error:
            self._breaker.abandoned()
            raise self._counted(error) from error
        except BaseException:
            self._breaker.abandoned()
            raise
        if response.status == HTTPStatus.OK:
            self.has_answered = True
        took_s = time.perf_counter() - started
        self._seconds.observe(took_s)
        self._metrics.stage_seconds["upstream"].observe(took_s)
        self._metrics.upstream_answers.labels(self._name, str(response.status)).inc()
        reason = reason_phrase(response.reason)
        return Answer(status=response.status, reason=reason, headers=response.headers, body=content)

    def _counted(self, error: Exception) -> ProxyError:
        mapped = _mapped(error)
        self._metrics.upstream_answers.labels(self._name, mapped.code.removeprefix("upstream_")).inc()
        return mapped

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


_WHY: tuple[tuple[type[Exception], str], ...] = (
    (ClientConnectorDNSError, "its host name is not known"),
    (ClientConnectorCertificateError, "its certificate is not trusted"),
    (ClientSSLError, "TLS with it failed"),
    (ClientConnectorError, "it can't be connected to"),
    (ServerDisconnectedError, "it closed the connection without an answer"),
    (ClientPayloadError, "its answer broke off"),
    (ClientResponseError, "its answer is not HTTP"),
)


def _tells_connection() -> TraceConfig:
    """Calls a request's ``on_connected``, and notes where its connection was kept from an earlier one."""
    config = TraceConfig()

    def told(trace: dict[str, Any] | None, *, is_reused: bool) -> None:
        if trace is not None:  # a WebSocket has none
            trace["is_reused"] = is_reused
            trace["on_connected"]()

    async def on_new(_session: ClientSession, context: SimpleNamespace, _params: object) -> None:
        told(context.trace_request_ctx, is_reused=False)

    async def on_reuse(_session: ClientSession, context: SimpleNamespace, _params: object) -> None:
        told(context.trace_request_ctx, is_reused=True)

    config.on_connection_create_end.append(on_new)
    config.on_connection_reuseconn.append(on_reuse)
    return config


async def _read(response: ClientResponse) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > _MAX_ANSWER_BYTES:
            raise ClientPayloadError("an answer without end")
    return b"".join(chunks)


def _mapped(error: Exception) -> ProxyError:
    if isinstance(error.__cause__, ProxyError):
        return error.__cause__  # the request's own body failed, which is no fault of the upstream
    if isinstance(error, TimeoutError):
        return UpstreamTimeout("The upstream did not answer in time.")
    # The exception's own text would name the upstream's address to the client.
    why = next((words for kind, words in _WHY if isinstance(error, kind)), "the connection broke")
    return UpstreamUnreachable(f"The upstream could not be reached: {why}.")
