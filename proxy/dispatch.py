"""Every request on the data port: its admission, its route, the response to a failure, and its log line."""

import logging
import time
from collections.abc import Callable
from functools import partial

from aiohttp import HttpVersion10, HttpVersion11, web
from multidict import CIMultiDict

from proxy.access.access import Access
from proxy.embeddings.exchange import BegunExchange
from proxy.embeddings.progress import Progress
from proxy.embeddings.request_log import RequestLog
from proxy.embeddings.response_head import finish_head
from proxy.embeddings.route import EmbeddingsRoute
from proxy.errors import CLIENT_LEFT, InvalidRequest, OriginNotAllowed, ProxyError, counted_status
from proxy.http.connection import Connection
from proxy.http.error_responses import error_response
from proxy.labels import RequestOutcome
from proxy.passthrough.relay import relay
from proxy.protocol import headers
from proxy.protocol.cors import is_preflight, origin_of
from proxy.protocol.targets import is_embeddings_like, loggable_path
from proxy.telemetry.access_log import RequestIds, trace_id
from proxy.telemetry.tracing import EMBEDDINGS_ROUTE, Traces
from proxy.upstream.router import Origin, Router

_log = logging.getLogger(__name__)

_VERSIONS = (HttpVersion11, HttpVersion10)
_NO_CONTENT = 204
_MAX_WARNED_PATHS = 16


class _CutShort(ConnectionResetError):
    """A response ended early. ``status`` is the one that is counted; the client has received a different one."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class Dispatcher:
    def __init__(
        self,
        origins: Router,
        embeddings: EmbeddingsRoute,
        access: Access,
        *,
        log: RequestLog,
        ids: RequestIds,
        traces: Traces,
        is_draining: Callable[[], bool],
    ) -> None:
        self._origins = origins
        self._embeddings = embeddings
        self._access = access
        self._log = log
        self._ids = ids
        self._traces = traces
        self._is_draining = is_draining
        self._warned_paths: set[str] = set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to any request. A failure becomes an error response."""
        begun = _begun(request)
        if begun is None:
            started_s = time.perf_counter()
            progress = Progress(self._ids.of(request.headers.get("X-Request-Id")))
            progress.span = self._traces.begin(request.method, request.headers, started_s)
        else:
            started_s, progress = begun.exchange.started_s, begun.exchange.progress
        status = CLIENT_LEFT
        try:
            response = await self._respond(request, progress, started_s, begun)
            status = response.status
        except _CutShort as cut:
            status = cut.status
            raise
        finally:
            trace = progress.span.trace_id or trace_id(request.headers.get("traceparent"))
            self._log.ended(progress, trace, status, started_s)
        if not response.prepared:
            upstream = (
                None if progress.outcome is RequestOutcome.PREFLIGHT else progress.origin or self._origins.default
            )
            finish_head(response, request.headers, upstream=upstream, request_id=progress.request_id)
            if self._is_draining():
                response.force_close()
        return response

    async def _respond(
        self, request: web.BaseRequest, progress: Progress, started_s: float, begun: BegunExchange | None
    ) -> web.StreamResponse:
        try:
            if begun is not None:
                return await self._embeddings.adopt(request, begun)
            self._admit(request, progress, started_s)
            return await self._route(request, progress)
        except Exception as error:
            if request.writer.output_size:
                # Part of the response has been sent. Only a cut connection tells the client that the rest is missing.
                _log.warning("response cut short: %s", type(error).__name__)
                raise _CutShort(counted_status(error)) from error
            if isinstance(error, ProxyError):
                return error_response(error)
            _log.exception("unexpected error in a request")
            return error_response(ProxyError("Internal error; see the proxy log."))

    def _admit(self, request: web.BaseRequest, progress: Progress, started_s: float) -> None:
        """Raises `ProxyError` for a request that may not be routed, and counts it if it is for the embeddings route."""
        try:
            if not is_preflight(request.method, request.headers):  # a preflight has no credentials
                progress.admission = self._access.admit(request.headers)
                progress.client = progress.admission.client
            _require_framed(request)
        except ProxyError as error:
            if request.method == "POST" and self._origins.is_embeddings(request.raw_path):
                self._embeddings.count(progress, error.status, started_s)
            raise

    async def _route(self, request: web.BaseRequest, progress: Progress) -> web.StreamResponse:
        if is_preflight(request.method, request.headers):
            progress.outcome = RequestOutcome.PREFLIGHT
            return await self._preflight(request, progress)
        target = request.raw_path
        if request.method == "POST" and self._origins.is_embeddings(target):
            progress.span.on_route(EMBEDDINGS_ROUTE)
            return await self._embeddings.handle(request, progress)
        url = _relayed_url(request, self._origins.default)
        if request.method == "POST" and request.body_exists and is_embeddings_like(target):
            self._warn_uncached(target)
            if self._origins.has_several:  # only one of them may be meant to see the texts
                return await self._embeddings.handle(request, progress)
            self._note_uncached(request, progress)
        return await self._pass_through(request, url, progress)

    def _note_uncached(self, request: web.BaseRequest, progress: Progress) -> None:
        own = self._access.identity(request.headers, request.raw_path)
        client, tenant = self._access.client(own, progress.admission), self._access.tenant(own, progress.admission)
        path, agent = loggable_path(request.raw_path), request.headers.get("User-Agent")
        self._embeddings.hitless_report.wrong_path(progress, client, tenant.name, path, agent)

    async def _pass_through(self, request: web.BaseRequest, url: str, progress: Progress) -> web.StreamResponse:
        progress.outcome = RequestOutcome.PASS
        progress.client_label = progress.client_label or progress.admission.client
        origin = self._origins.default
        forwarded = origin.outbound(headers.to_upstream(request.headers))
        on_head = partial(origin.cors.passed_through, origin_of(request.headers))
        return await self._relay(request, progress, url, forwarded, owns_key=bool(origin.key), on_head=on_head)

    async def _preflight(self, request: web.BaseRequest, progress: Progress) -> web.StreamResponse:
        """Respond to a CORS preflight, or relay it, without the key that the proxy holds."""
        self._access.admit_preflight(request.headers)
        origin, page = self._origins.default, origin_of(request.headers)
        if origin.cors.handles_preflights:
            if not origin.cors.allows(page):
                raise OriginNotAllowed("This proxy's --cors-origins does not include the origin of this page.")
            return web.Response(status=_NO_CONTENT, headers=origin.cors.preflight(request.headers))
        url = _relayed_url(request, origin)
        forwarded = headers.to_upstream(request.headers)
        if origin.key:  # a preflight proves no right to use it
            forwarded = headers.without_credentials(forwarded)
        learns = origin.routes.is_embeddings(request.raw_path)
        on_head = partial(origin.cors.learn_preflight if learns else origin.cors.passed_through, page)
        return await self._relay(request, progress, url, forwarded, owns_key=False, on_head=on_head)

    async def _relay(
        self,
        request: web.BaseRequest,
        progress: Progress,
        url: str,
        forwarded: CIMultiDict[str],
        *,
        owns_key: bool,
        on_head: Callable[[int, CIMultiDict[str]], None],
    ) -> web.StreamResponse:
        origin = self._origins.default
        with progress.span.calls() as calls, calls.call(request.method, url, upstream=origin.name) as call:
            response = await relay(
                request,
                origin.client,
                url,
                call.outbound(forwarded),
                request_id=progress.request_id,
                is_draining=self._is_draining,
                owns_key=owns_key,
                on_head=on_head,
            )
            call.responded(response.status)
        return response

    def _warn_uncached(self, target: str) -> None:
        """Warn, once for each path, that another path is cached. Clients choose paths, so only a part is logged."""
        path = loggable_path(target)
        if path in self._warned_paths or len(self._warned_paths) >= _MAX_WARNED_PATHS:
            return
        self._warned_paths.add(path)
        own = self._origins.default.provider.path
        hint = ""
        if path.endswith(own):
            hint = f", or --upstream (base_url) to the part of the upstream's URL before {own}"
        _log.warning(
            "POST %s looks like an embeddings call and is relayed uncached; POST /v1%s is cached. Set the client's base"
            " URL to this proxy's /v1%s (logged once)",
            path,
            own,
            hint,
        )


def _begun(request: web.BaseRequest) -> BegunExchange | None:
    """The response that a request began before it was parsed, or None."""
    connection = request.protocol
    begun = connection.take_begun() if isinstance(connection, Connection) else None
    return begun if isinstance(begun, BegunExchange) else None


def _relayed_url(request: web.BaseRequest, origin: Origin) -> str:
    """Raises `InvalidRequest` for a target that has no URL at the upstream."""
    url = origin.routes.relayed(origin.target(request.raw_path))
    if url is None:
        raise InvalidRequest("The request target must be a path.")
    return url


def _require_framed(request: web.BaseRequest) -> None:
    """Raises `InvalidRequest` for requests that aiohttp accepts but another server may understand differently."""
    if request.method == "CONNECT":  # after a 2xx response, what follows is not HTTP (RFC 9110 §9.3.6)
        raise InvalidRequest("This proxy does not open tunnels.")
    if request.method == "TRACE":  # the response may echo a key that is not the client's (RFC 9110 §9.3.8)
        raise InvalidRequest("This proxy does not relay TRACE.")
    if request.version not in _VERSIONS:
        raise InvalidRequest("The HTTP version must be 1.0 or 1.1.")
    if request.headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
        raise InvalidRequest("The only supported transfer coding is chunked.")
