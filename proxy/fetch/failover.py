"""One call upstream: to the origin and, where it has no answer, to those that serve the same model."""

import logging
import time

from multidict import CIMultiDict

from proxy.errors import ProxyError
from proxy.fetch.batch_entry import BatchEntry
from proxy.fetch.outcomes import is_outage, is_success, status_of
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
        self, entry: BatchEntry, body: bytes, items: int, calls: Calls, *, flow: ResponseFlow
    ) -> tuple[UpstreamResponse, Origin]:
        """The response, and who gave it. If nobody has one, what the origin itself said. Raises `ProxyError`."""
        failure: UpstreamResponse | ProxyError | None = None
        here = entry.origin.provider
        for way in entry.origin.candidates:
            if failure is not None:
                if not embedding_request.is_equivalent(body, here, way.origin.provider, model=way.model):
                    continue
                self._metrics.upstream_fallbacks.labels(way.origin.name).inc()
                self._log_fallback(entry.origin.name, way.origin.name, failure)
            try:
                answer = await self._ask(entry, way, body, items, calls, flow=flow)
            except ProxyError as error:
                failure = failure or error
                continue
            is_good = is_success(status_of(answer))
            if is_good or (failure is None and not is_outage(answer)):
                return answer, way.origin
            failure = failure or answer
        if isinstance(failure, UpstreamResponse):
            return failure, entry.origin
        raise failure or ProxyError("No upstream was asked.")

    def _log_fallback(self, name: str, other: str, failure: UpstreamResponse | ProxyError) -> None:
        """An outage of an hour is one line a minute."""
        now_s = time.monotonic()
        if now_s - self._logged_at_s.get((name, other), -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._logged_at_s[name, other] = now_s
            why = f"it answers {failure.status}" if isinstance(failure, UpstreamResponse) else failure.message
            _log.warning("upstream %s has no answer (%s); %s is asked in its place", name, why, other)

    async def _ask(
        self, entry: BatchEntry, way: Fallback, body: bytes, items: int, calls: Calls, *, flow: ResponseFlow
    ) -> UpstreamResponse:
        if way.model is not None:
            body = request_body.renamed_body(body, way.model)
        headers = way.origin.outbound(_for_body(entry, body))
        origin = way.origin
        # A credential in the query is meant for the upstream that the client has in mind, and for no other.
        target = entry.target if origin is entry.origin else query.without_credentials(entry.target)
        url = origin.routes.embeddings(target, model=way.model)
        async with self._slots.slot(origin, entry.tenant.name):
            with calls.call("POST", url, upstream=origin.name, provider=origin.provider.name, items=items) as call:
                answer = await origin.client.embed(url, call.outbound(headers), body, items=items, flow=flow)
                call.answered(answer.status)
        entry.origin.cors.learn(origin_of(headers), answer.status, answer.headers)
        return answer


def _for_body(entry: BatchEntry, body: bytes) -> CIMultiDict[str]:
    """The headers to send with ``body``. An idempotency key stands for the client's own body: an upstream that keeps
    its word would answer another one with what it answered the first time. So does a request's id: of two requests
    under way with the same one vLLM's scheduler dies."""
    if body == entry.asked.body:
        return entry.headers
    copy = entry.headers.copy()
    for name in ("Idempotency-Key", "X-Idempotency-Key", "X-Request-Id"):
        copy.popall(name, None)
    return copy
