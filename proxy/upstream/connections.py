"""Connections to one upstream: two pools of kept ones, and new ones for requests that must not reuse any."""

import select
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any
from weakref import WeakSet

from aiohttp import (
    BaseConnector,
    ClientConnectionError,
    ClientError,
    ClientPayloadError,
    ClientResponse,
    ClientResponseError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
)
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from multidict import CIMultiDict
from yarl import URL

from proxy.turns import turn
from proxy.upstream.aiohttp_seam import disable_retries, has_begun_message, has_idle_connections, interim_of
from proxy.upstream.failures import broke_before_response, proxy_refused
from proxy.upstream.outbound import Outbound

# aiohttp would add each of these to a request that lacks it.
_NO_AUTO_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
# Limits of a response's head: no lower than those of the clients themselves.
_MAX_FIELD_BYTES, _MAX_FIELDS = 64 * 1024, 1024
# Reading from a connection pauses at twice this. aiohttp's default of 256 KiB takes a millisecond to copy.
_BUFFER_BYTES = 64 * 1024
_LARGE_BYTES, _CHUNK_BYTES = 256 * 1024, 128 * 1024


class Pool(Enum):
    """Two pools, so that bytes which a stream leaves on a connection never reach an embeddings call."""

    CALLS = 1
    STREAMS = 2


@dataclass(slots=True)
class ConnectionTrace:
    """Whether a request got a connection, and whether that was a kept one."""

    on_connected: Callable[[], None] = lambda: None
    is_connected: bool = False
    is_reused: bool = False  # the connection was kept from an earlier request


_trace: ContextVar[ConnectionTrace] = ContextVar("_trace")  # of the request that a task sends


class Connections:
    def __init__(
        self,
        connect: Callable[[bool], BaseConnector],
        outbound: Outbound,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
    ) -> None:
        """``connect`` makes a connector; its argument is whether connections are kept for further requests."""
        self._outbound = outbound
        self._sessions = {pool: _open_session(connect(True), connect_timeout_s, read_timeout_s) for pool in Pool}
        # Each request gets a new connection.
        self._unpooled = _open_session(connect(False), connect_timeout_s, read_timeout_s)

    async def close(self) -> None:
        for session in (*self._sessions.values(), self._unpooled):
            await session.close()

    async def send(
        self,
        pool: Pool,
        method: str,
        url: str,
        headers: CIMultiDict[str],
        body: Any,
        *,
        trace: ConnectionTrace,
    ) -> ClientResponse:
        """Send, and wait for the response's head. If a kept connection broke before its first byte, send once more.

        An upstream may close an idle connection just as the request is sent (RFC 9112 §9.3.1). Often several are dead
        at once, as after a restart of a load balancer, so the second attempt is on a new connection. If that breaks
        too, the request itself may be the reason. A streamed body can't be sent twice, so it gets a new connection from
        the start.
        """
        session = self._sessions[pool]
        headers = self._outbound.fields(url, headers)
        is_large = isinstance(body, bytes) and len(body) > _LARGE_BYTES
        if is_large:
            headers = headers.copy()
            headers["Content-Length"] = str(len(body))

        async def send_on(session: ClientSession) -> ClientResponse:
            trace.is_connected = False
            _trace.set(trace)
            data = _in_chunks(body) if is_large else body
            return await session.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=data,
                allow_redirects=False,
                **self._outbound.options(url),
            )

        is_repeatable = body is None or isinstance(body, bytes)
        try:
            response = await send_on(session if is_repeatable else self._unpooled)
        except ClientError as error:
            if not (is_repeatable and trace.is_reused and broke_before_response(error)):
                raise
            response = await send_on(self._unpooled if _keeps_connections(session) else session)
        if response.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED and self._outbound.is_proxy_response(url):
            response.close()
            raise proxy_refused(response.status)
        return response


def _open_session(connector: BaseConnector, connect_timeout_s: float, read_timeout_s: float) -> ClientSession:
    # `connect` covers DNS, TCP, TLS, and a forward proxy that is slow to respond to CONNECT.
    timeout = ClientTimeout(total=None, connect=connect_timeout_s, sock_read=read_timeout_s)
    session = ClientSession(
        connector=_report_connections(connector),
        response_class=_FinalResponse,
        # A cookie of one client must not travel with another's request.
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=_NO_AUTO_HEADERS,
        timeout=timeout,
        trust_env=False,
        max_line_size=_MAX_FIELD_BYTES,
        max_field_size=_MAX_FIELD_BYTES,
        max_headers=_MAX_FIELDS,
        read_bufsize=_BUFFER_BYTES,
    )
    disable_retries(session)  # `Connections.send` resends a request of any method, and on a new connection
    return session


async def _in_chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _CHUNK_BYTES):
        await turn()
        yield body[start : start + _CHUNK_BYTES]


def _keeps_connections(session: ClientSession) -> bool:
    """Whether the next request might reuse a kept connection. If not, it gets a new one, which may be kept."""
    connector = session.connector
    return connector is not None and has_idle_connections(connector)


def _report_connections(connector: BaseConnector) -> BaseConnector:
    """Make a connector report to the `ConnectionTrace` of each request. The HTTP client's own tracing could do that,
    but makes an object and several coroutines for each request."""
    connect = connector.connect
    known: WeakSet[ResponseHandler] = WeakSet()

    async def reporting(*given: Any, **named: Any) -> Connection:
        connection = await connect(*given, **named)
        while (protocol := connection.protocol) in known and has_received(protocol):
            connection.close()
            connection = await connect(*given, **named)
        if protocol is not None:
            trace = _trace.get()
            trace.is_connected, trace.is_reused = True, protocol in known
            known.add(protocol)
            trace.on_connected()
        return connection

    connector.connect = reporting  # type: ignore[method-assign]
    return connector


def has_received(protocol: ResponseHandler | None) -> bool:
    """Whether bytes have arrived on a kept connection, or its end, since its last response.

    They belong to no request (a balancer's 408, a second response): the next request would take them for its response,
    and each one after that the response of the one before, perhaps with another client's vectors (RFC 9112 §9.2).
    """
    transport = None if protocol is None else protocol.transport
    if protocol is None or transport is None or protocol.should_close:
        return True
    if has_begun_message(protocol):
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


class _FinalResponse(ClientResponse):
    """A response whose status is valid for its request, and final (RFC 9110 §15.2).

    No status is below 100 (RFC 9110 §15), and a 101 is valid only for a request with ``Upgrade`` (§15.2.2). aiohttp
    takes these for responses without a body, and would keep the connection for other requests.
    """

    async def start(self, connection: Connection) -> ClientResponse:
        protocol, interim = connection.protocol, interim_of(self)
        try:
            await super().start(connection)
        except ClientConnectionError as error:
            if not interim.done():
                raise
            # Not a kept connection that had died before: the request has arrived, and must not be sent again.
            raise ClientPayloadError("the connection broke after an interim response") from error
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
