"""The HTTP client towards the upstream: one call, and what it answered."""

import asyncio
import io
import time
import zlib
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import BaseConnector, ClientError, ClientResponse, ClientSession, ClientTimeout, DummyCookieJar
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.errors import ProxyError, UpstreamTimeout, UpstreamUnreachable
from proxy.metrics import Metrics
from proxy.wire import InvalidAnswer

# aiohttp would add each of these to a request that lacks it.
_NO_AUTO_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_CONNECT_TIMEOUT_S = 10.0
# The SDKs wait 600 s for an answer's next byte; who waits less than they do fails requests they would not.
_READ_TIMEOUT_S = 600.0
# 2048 items of 4096 numbers, written out at full length, are 180 MiB.
_MAX_INFLATED_BYTES = 512 * 1024 * 1024
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An upstream's answer, whole and as it came, so that it can be relayed."""

    status: int
    reason: str
    headers: CIMultiDictProxy[str]
    body: bytes

    def plain_body(self) -> bytes:
        """The body without its content coding. Raises `InvalidAnswer` for one that can't be undone."""
        coding = self.headers.get("Content-Encoding", "identity").lower()
        if coding == "identity":
            return self.body
        if coding not in {"gzip", "deflate"}:
            raise InvalidAnswer("content-encoding")
        try:
            inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
            plain = inflater.decompress(self.body, _MAX_INFLATED_BYTES)
        except zlib.error:
            raise InvalidAnswer("content-encoding") from None
        if not inflater.eof:
            raise InvalidAnswer("content-encoding")
        return plain


class Upstream:
    """Connections to the upstream. Nothing a client sends chooses where they go: callers pass URLs of `Routes`."""

    def __init__(self, connector: BaseConnector, metrics: Metrics) -> None:
        self._metrics = metrics
        self._session = ClientSession(
            connector=connector,
            # A cookie of one client must not travel with another's request.
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NO_AUTO_HEADERS,
            timeout=ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    @property
    def session(self) -> ClientSession:
        """For what is no plain exchange: WebSockets."""
        return self._session

    async def open(self, method: str, url: str, headers: CIMultiDict[str], body: Any) -> ClientResponse:
        """Send a request and wait for the answer's head; the caller reads and releases the rest.

        Raises `UpstreamUnreachable` or `UpstreamTimeout`.
        """
        if isinstance(body, bytes):
            body = io.BytesIO(body)  # goes out in pieces; aiohttp warns of megabytes in one
        try:
            return await self._session.request(
                method, URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
            )
        except (ClientError, TimeoutError, OSError) as error:
            raise _mapped(error) from error

    async def embed(self, url: str, headers: CIMultiDict[str], body: bytes, *, items: int) -> Answer:
        """One embeddings call of ``items`` items. Raises as `open` does."""
        headers["Accept-Encoding"] = "identity"  # the answer is to be read here
        started = time.perf_counter()
        self._metrics.upstream_batch_items.observe(items)
        try:
            response = await self.open("POST", url, headers, body)
            async with response:
                try:
                    content = await response.read()
                except (ClientError, TimeoutError, OSError) as error:
                    raise _mapped(error) from error
        except ProxyError as error:
            self._metrics.upstream_answers.labels(error.code.removeprefix("upstream_")).inc()
            raise
        self._metrics.upstream_seconds.observe(time.perf_counter() - started)
        self._metrics.upstream_answers.labels(str(response.status)).inc()
        return Answer(status=response.status, reason=response.reason or "", headers=response.headers, body=content)


def _mapped(error: Exception) -> ProxyError:
    if isinstance(error, asyncio.TimeoutError):
        return UpstreamTimeout("The upstream did not answer in time.")
    # The exception's own text would name the upstream's address to the client.
    return UpstreamUnreachable(f"The upstream could not be reached ({type(error).__name__}).")
