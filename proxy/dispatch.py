"""Every request of the data port: who may ask, which way it goes, what is said when it fails, and its line of log."""

import logging
import secrets
import time
from collections.abc import Callable, Sequence

from aiohttp import HttpVersion10, HttpVersion11, web
from multidict import CIMultiDict

from proxy import headers
from proxy.answers import head_of_hit
from proxy.auth import KEY_REFUSALS, Access
from proxy.embeddings import CLIENT_LEFT, EmbeddingsRoute, Progress
from proxy.errors import InvalidRequest, ProxyError, RequestTimeout
from proxy.origins import Origins
from proxy.passthrough import is_websocket, relay, relay_websocket
from proxy.repeats import Repeats
from proxy.requestlog import Line, RequestIds, RequestLog, trace_id
from proxy.traces import Traces

_log = logging.getLogger(__name__)

_VERSIONS = (HttpVersion11, HttpVersion10)
_OK = 200
_NO_FIELDS = CIMultiDict[str]()
_EMBEDDINGS = "/v1/embeddings"  # as traces call the route, whatever the provider does


class Dispatcher:
    def __init__(
        self,
        origins: Origins,
        embeddings: EmbeddingsRoute,
        repeats: Repeats,
        access: Access,
        *,
        log: RequestLog,
        traces: Traces,
        is_draining: Callable[[], bool],
    ) -> None:
        self._origins = origins
        self._embeddings = embeddings
        self._repeats = repeats
        self._access = access
        self._log = log
        self._traces = traces
        self._is_draining = is_draining
        self._ids = RequestIds(secrets.token_hex(4))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to any request; what goes wrong becomes one, too."""
        started_s = time.perf_counter()
        request_id = self._ids.of(request.headers.get("X-Request-Id"))
        progress = Progress(request_id)
        progress.span = self._traces.begin(request.method, request.headers, started_s)
        status = CLIENT_LEFT
        try:
            response = await self._answer(request, progress)
            status = response.status
        finally:
            trace = progress.span.trace_id or trace_id(request.headers.get("traceparent"))
            self._end(progress, trace, status, started_s)
        if not response.prepared:
            response.headers.setdefault("X-Request-Id", request_id)  # an upstream's own stays
            if self._is_draining():
                response.force_close()
        return response

    def answer_whole(self, sent: bytes) -> Sequence[bytes] | None:
        """The answer to a request that came before to the byte and needs nothing but memory; None: it must be read.

        Counted, logged and traced as that of any other.
        """
        if self._is_draining():
            return None
        started_s = time.perf_counter()
        try:
            repeat = self._repeats.answer_whole(sent, started_s)
        except Exception:  # noqa: BLE001 - it can still be answered as any other, or fail as one
            _log.exception("a request that came again failed in a way nobody thought of")
            return None
        if repeat is None:
            return None
        progress = Progress(self._ids.of(None))
        progress.span = self._traces.begin("POST", _NO_FIELDS, started_s)
        progress.span.on_route(_EMBEDDINGS)
        progress.repeated(repeat)
        self._embeddings.count(progress, _OK, started_s)
        self._end(progress, progress.span.trace_id, _OK, started_s)
        return head_of_hit(repeat.body, repeat.saved_tokens, progress.request_id), repeat.body

    def begins(self, sent: bytes) -> bool:
        """Whether these bytes are the head of a request that `answer_whole` may know, and whose body is yet to come."""
        return self._repeats.begins(sent)

    def _end(self, progress: Progress, trace: str | None, status: int, started_s: float) -> None:
        # By position: it is made for every request, and by name it takes twice as long.
        line = Line(
            progress.request_id,
            trace,
            progress.outcome,
            status,
            progress.model,
            progress.items,
            progress.cached,
            time.perf_counter() - started_s,
        )
        self._log.add(line)
        progress.span.end(status, progress.outcome, progress.model, items=progress.items, cached=progress.cached)

    async def _answer(self, request: web.BaseRequest, progress: Progress) -> web.StreamResponse:
        try:
            return await self._route(request, progress)
        except ProxyError as error:
            return _error_response(error)
        except Exception as error:
            if request.writer.output_size:
                # Part of the answer is out. Cutting the connection is how the client learns that there is no more.
                _log.warning("an answer was cut short: %s", type(error).__name__)
                raise ConnectionResetError from error
            _log.exception("a request failed in a way nobody thought of")
            return _error_response(ProxyError("The proxy failed; its log says how."))

    async def _route(self, request: web.BaseRequest, progress: Progress) -> web.StreamResponse:
        progress.edition = self._access.admit(request.headers)
        _require_framed(request)
        target = request.raw_path
        origin = self._origins.default
        route = origin.routes.find(target)
        if route is None:
            raise InvalidRequest("The request target must be a path.")
        if request.method == "POST" and (route.is_embeddings or self._origins.is_embeddings(target)):
            progress.span.on_route(_EMBEDDINGS)
            return await self._embeddings.handle(request, progress)
        progress.outcome = "pass"
        forwarded = origin.outbound(headers.to_upstream(request.headers))
        with progress.span.calls() as calls, calls.call(request.method, route.url, upstream=origin.name) as call:
            forwarded = call.outbound(forwarded)
            refused = KEY_REFUSALS if origin.key else ()
            if is_websocket(request):
                response = await relay_websocket(
                    request,
                    origin.client,
                    route.url,
                    forwarded,
                    request_id=progress.request_id,
                    is_last=self._is_draining(),
                    owns_key=bool(origin.key),
                    refused=refused,
                )
            else:
                response = await relay(
                    request,
                    origin.client,
                    route.url,
                    forwarded,
                    request_id=progress.request_id,
                    is_last=self._is_draining(),
                    refused=refused,
                )
            call.answered(response.status)
        return response


def _require_framed(request: web.BaseRequest) -> None:
    """Raises `InvalidRequest` for what aiohttp lets through and two servers may take for different requests."""
    if request.method == "CONNECT":  # after a 2xx to it there is no HTTP any more (RFC 9110 §9.3.6)
        raise InvalidRequest("This proxy opens no tunnels.")
    if request.method == "TRACE":  # it may echo a key that is not the client's (RFC 9110 §9.3.8)
        raise InvalidRequest("This proxy relays no TRACE.")
    if request.version not in _VERSIONS:
        raise InvalidRequest("The HTTP version must be 1.0 or 1.1.")
    if request.headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
        raise InvalidRequest("The only transfer coding understood is chunked.")


def _error_response(error: ProxyError) -> web.Response:
    response = web.Response(status=error.status, body=error.body(), content_type="application/json")
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, RequestTimeout):
        response.force_close()  # what still comes of the body is nobody's
    return response
