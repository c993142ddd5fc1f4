"""One upstream call: to the origin and, where that fails, to the fallbacks that serve the same model."""

import logging
import time

from multidict import CIMultiDict

from proxy.errors import ProxyError
from proxy.fetch.outcomes import is_outage, is_success, status_of
from proxy.fetch.request import ClientRequest
from proxy.fetch.slots import Slots
from proxy.protocol import embedding_request, query, request_body
from proxy.protocol.cors import origin_of
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import Calls
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.flow_control import ResponseFlow
from proxy.upstream.router import Fallback, Origin

_log = logging.getLogger(__name__)

_LOG_EVERY_S = 60.0


class Failover:
    def __init__(self, slots: Slots, metrics: Metrics) -> None:
        self._slots = slots
        self._metrics = metrics
        self._logged_at_s: dict[tuple[str, str], float] = {}

    async def embed(
        self, client_request: ClientRequest, body: bytes, items: int, calls: Calls, *, flow: ResponseFlow
    ) -> tuple[UpstreamResponse, Origin]:
        """The response, and the upstream that gave it; if all of them fail, the origin's own. Raises `ProxyError`."""
        failure: UpstreamResponse | ProxyError | None = None
        origin = client_request.origin
        for candidate in origin.candidates:
            if failure is not None:
                other = candidate.origin
                if not embedding_request.is_equivalent(body, origin.provider, other.provider, model=candidate.model):
                    continue
                self._metrics.upstream_fallbacks.labels(other.name).inc()
                self._log_fallback(origin.name, other.name, failure)
            try:
                response = await self._send(client_request, candidate, body, items, calls, flow=flow)
            except ProxyError as error:
                failure = failure or error
                continue
            is_good = is_success(status_of(response))
            if is_good or (failure is None and not is_outage(response)):
                return response, candidate.origin
            failure = failure or response
        if isinstance(failure, UpstreamResponse):
            return failure, origin
        raise failure or ProxyError("No upstream was asked.")

    def _log_fallback(self, name: str, other: str, failure: UpstreamResponse | ProxyError) -> None:
        """Log once a minute, however long an outage lasts."""
        now_s = time.monotonic()
        if now_s - self._logged_at_s.get((name, other), -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._logged_at_s[name, other] = now_s
            why = f"status {failure.status}" if isinstance(failure, UpstreamResponse) else failure.message
            _log.warning("upstream %s failed (%s); using fallback %s", name, why, other)

    async def _send(
        self,
        client_request: ClientRequest,
        candidate: Fallback,
        body: bytes,
        items: int,
        calls: Calls,
        *,
        flow: ResponseFlow,
    ) -> UpstreamResponse:
        origin = candidate.origin
        if candidate.model is not None:
            body = request_body.renamed_body(body, candidate.model)
        headers = origin.outbound(_headers_for(client_request, body))
        # A credential in the query is meant for the upstream that the client chose, and for no other.
        target = (
            client_request.target
            if origin is client_request.origin
            else query.without_credentials(client_request.target)
        )
        url = origin.routes.embeddings(target, model=candidate.model)
        async with self._slots.slot(origin, client_request.tenant.name):
            with calls.call("POST", url, upstream=origin.name, provider=origin.provider.name, items=items) as span:
                response = await origin.client.embed(url, span.outbound(headers), body, items=items, flow=flow)
                span.responded(response.status)
        client_request.origin.cors.learn(origin_of(headers), response.status, response.headers)
        return response


def _headers_for(client_request: ClientRequest, body: bytes) -> CIMultiDict[str]:
    """The headers to send with ``body``.

    An idempotency key identifies the client's own body: for another body, an upstream that honors it would return the
    response to the first. So does a request ID: vLLM's scheduler fails if two requests under way have the same.
    """
    if client_request.is_own_body(body):
        return client_request.headers
    headers = client_request.headers.copy()
    for name in ("Idempotency-Key", "X-Idempotency-Key", "X-Request-Id"):
        headers.popall(name, None)
    return headers
