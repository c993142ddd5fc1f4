"""The HTTP client of one upstream: embeddings calls, and streams for every other route.

Everything the rest of the proxy knows of an upstream connection is here: `UpstreamClient` and the `UpstreamResponse` of
a call.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from aiohttp import (
    BaseConnector,
    ClientError,
    ClientPayloadError,
    ClientResponse,
)
from multidict import CIMultiDict, CIMultiDictProxy

from proxy import turns
from proxy.errors import Overloaded, ProxyError, UpstreamUnreachable
from proxy.pieces import Pieces
from proxy.protocol import content_coding, error_body
from proxy.protocol.content_coding import InvalidCoding
from proxy.protocol.embedding_response import InvalidEmbeddingResponse
from proxy.protocol.headers import reason_phrase
from proxy.telemetry.metrics import Metrics
from proxy.upstream.circuit import Circuit
from proxy.upstream.connections import Connections, ConnectionTrace, Pool
from proxy.upstream.egress import DIRECT, Egress
from proxy.upstream.failures import FailureMapper, broke_midway, is_tls_alert
from proxy.upstream.flow_control import ResponseFlow
from proxy.upstream.outbound import Outbound
from proxy.upstream.redirects import Redirects, has_location
from proxy.upstream.urls import Routes

# Each stream uses a file descriptor. Many systems allow a process only 1024 of them.
_MAX_STREAMS = 512
# 2048 items of 4096 numbers, written out at full length, are 180 MiB.
_MAX_RESPONSE_BYTES = 512 * 1024 * 1024
_SMALL_BYTES = 256 * 1024
_LAST_STATUS = 599  # RFC 9110 §15
_STORABLE = frozenset({HTTPStatus.OK, HTTPStatus.CREATED})


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamResponse:
    """A complete response, its body as received, so that it can be relayed."""

    status: int
    reason: str
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def is_storable(self) -> bool:
        """Whether its status lets it be stored. Gateways use other 2xx for other things (246: succeeded, and flagged):
        such responses are for the client whose own body was sent, and not for the cache."""
        return self.status in _STORABLE

    def without_cookies(self) -> Self:
        """The same without cookies, for clients other than the one whose call got it."""
        if "Set-Cookie" not in self.headers:
            return self
        headers = self.headers.copy()
        headers.popall("Set-Cookie")
        return replace(self, headers=CIMultiDictProxy(headers))

    def plain_body(self) -> bytes:
        """The body without its content coding. Raises `InvalidEmbeddingResponse` for one that can't be decoded."""
        coding = self.headers.get("Content-Encoding", "identity").lower()
        if coding == "identity":
            return self.body
        if coding not in content_coding.CODINGS:
            raise InvalidEmbeddingResponse("content-encoding")
        max_bytes = content_coding.most_bytes(self.body, _MAX_RESPONSE_BYTES)
        try:
            return content_coding.decode(self.body, max_bytes=max_bytes)
        except InvalidCoding:
            raise InvalidEmbeddingResponse("content-encoding") from None

    @property
    def error_text(self) -> bytes:
        """The body as far as it may be an error's: without its content coding, if it is short. An upstream may send one
        though the proxy asks for none."""
        if "Content-Encoding" not in self.headers or len(self.body) > error_body.MAX_ERROR_BYTES:
            return self.body
        try:
            return self.plain_body()
        except InvalidEmbeddingResponse:
            return self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The defaults are those of the SDKs, which wait 600 s for the next byte: with less, requests would fail that
    succeed without the proxy."""

    connect_s: float = 10.0
    read_s: float = 600.0  # between two reads, the first byte among them
    total_s: float = 600.0  # one embeddings call; other routes may stream for hours


class UpstreamClient:
    """Connections to the upstream. Clients never choose the destination: callers pass URLs of `Routes`."""

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
        """``connect`` makes a connector; its argument is whether connections are kept for further requests.

        Raises `ConfigError` for files of ``egress`` that can't be used.
        """
        self._name = name
        self.outbound = Outbound(name, egress)
        self._failures = FailureMapper(egress.proxy)
        self._redirects = Redirects(name, routes)
        self._metrics = metrics
        self._seconds = metrics.upstream_seconds.labels(name)
        self._timeouts = timeouts
        self.has_succeeded = False  # 200, ever
        self._circuit = Circuit(name, metrics)
        # Streams that stay open for hours must not take the connections that embeddings calls need. The batcher limits
        # the number of calls.
        self._stream_slots = asyncio.Semaphore(_MAX_STREAMS)
        self._connections = Connections(
            connect, self.outbound, connect_timeout_s=timeouts.connect_s, read_timeout_s=timeouts.read_s
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connections.close()

    async def embed(
        self, url: str, headers: CIMultiDict[str], body: bytes, *, items: int, flow: ResponseFlow
    ) -> UpstreamResponse:
        """One embeddings call of ``items`` items, whose response is read as fast as ``flow`` allows.

        Raises `ProxyError`, `UpstreamDown` while the circuit is open.
        """
        with self._circuit.attempt():
            headers = headers.copy()
            headers["Accept-Encoding"] = "identity"  # the proxy parses the response
            started_s = time.perf_counter()
            self._metrics.upstream_batch_items.observe(items)
            response, content = await self._call(url, headers, body, flow)
        self._circuit.responded()
        if response.status == HTTPStatus.OK:
            self.has_succeeded = True
        self._redirects.check(url, response.status, response.headers)
        took_s = time.perf_counter() - started_s
        self._seconds.observe(took_s)
        self._metrics.stage_seconds["upstream"].observe(took_s)
        received = UpstreamResponse(
            status=response.status,
            reason=reason_phrase(response.reason),
            headers=self._relocated(url, response.headers),
            body=content,
        )
        self._metrics.upstream_responses.labels(self._name, _status_label(received)).inc()
        return received

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, headers: CIMultiDict[str], body: Any
    ) -> AsyncIterator[ClientResponse]:
        """Send a request and wait for the response's head. Within the block the caller reads the rest by `read_chunk`.

        The response to a request with ``Upgrade`` may be a 101. Raises `UpstreamUnreachable`, `UpstreamTimeout`, or
        `Overloaded` if too many streams are open.
        """
        trace = ConnectionTrace()
        async with self._stream_slot():
            try:
                response = await self._connections.send(Pool.STREAMS, method, url, headers, body, trace=trace)
            except (ClientError, TimeoutError, OSError) as error:
                raise self._failures.to_error(error, is_connected=trace.is_connected) from error
            if method == "POST":
                self._redirects.check(url, response.status, response.headers)
            async with response:
                yield response

    def relocate(self, url: str, headers: CIMultiDict[str]) -> None:
        """`Redirects.relocate`, for the fields of a streamed response."""
        self._redirects.relocate(url, headers)

    def _relocated(self, url: str, headers: CIMultiDictProxy[str]) -> CIMultiDictProxy[str]:
        if not has_location(headers):
            return headers
        changed = headers.copy()
        self._redirects.relocate(url, changed)
        return CIMultiDictProxy(changed)

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

    async def _call(
        self, url: str, headers: CIMultiDict[str], body: bytes, flow: ResponseFlow
    ) -> tuple[ClientResponse, bytes]:
        """Raises `ProxyError`."""
        trace = ConnectionTrace(self._circuit.connected)
        try:
            async with asyncio.timeout(self._timeouts.total_s):
                response = await self._connections.send(Pool.CALLS, "POST", url, headers, body, trace=trace)
                async with response:
                    return response, await _read(response, flow)
        except (ClientError, TimeoutError, OSError) as error:
            self._report(error, is_connected=trace.is_connected)
            raise self._counted(self._failures.to_error(error, is_connected=trace.is_connected)) from error
        except UpstreamUnreachable as error:  # the forward proxy's own response
            self._circuit.refused(error.message)
            raise self._counted(error) from None

    def _report(self, error: Exception, *, is_connected: bool) -> None:
        if not is_connected and self._failures.is_connect_failure(error):
            self._circuit.connect_failed(self._failures.describe(error, is_connected=False))
        elif is_tls_alert(error):
            self._circuit.refused(self._failures.describe(error))

    def _counted(self, error: ProxyError) -> ProxyError:
        self._metrics.upstream_responses.labels(self._name, error.code.removeprefix("upstream_")).inc()
        return error


async def read_chunk(response: ClientResponse) -> bytes:
    """The next bytes of a streamed response; b"" at its end. Raises `ProxyError`, so that a failure of the upstream is
    not mistaken for a failure to write to the client."""
    try:
        return await response.content.readany()
    except (ClientError, TimeoutError, OSError) as error:
        raise broke_midway(error) from error


async def _read(response: ClientResponse, flow: ResponseFlow) -> bytes:
    first = await response.content.readany()
    await flow.received(len(first))
    if response.content.at_eof():  # the usual small response
        return first
    body = Pieces()
    body.write(first)
    async for chunk in response.content.iter_any():
        body.write(chunk)
        await flow.received(len(chunk))
        if body.size_bytes > _SMALL_BYTES:
            await turns.turn()
        if body.size_bytes > _MAX_RESPONSE_BYTES:
            raise ClientPayloadError("the response is too large")
    return await turns.run(body.joined())


def _status_label(response: UpstreamResponse) -> str:
    """The status that a response is counted under. If a 200 is an error (OpenRouter), its code may be any integer."""
    if response.status != HTTPStatus.OK or not error_body.is_error(text := response.error_text):
        return str(response.status)
    code = error_body.error_status(text)
    if code < HTTPStatus.BAD_REQUEST:
        return "400"
    return str(code) if code <= _LAST_STATUS else "500"
