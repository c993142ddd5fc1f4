"""One probe of the upstream for one credential, however many requests wait for the result."""

import asyncio
import logging
from typing import NamedTuple

from msgspec.structs import replace

from proxy.access.validations import Credential
from proxy.errors import BudgetSpent, BudgetUnknown, Overloaded, ProxyError, RateLimited, UpstreamDown
from proxy.fetch.fetcher import Fetcher
from proxy.fetch.outcomes import Blame, blame, rate_limit_refusal
from proxy.fetch.request import ClientRequest, FetchRequest
from proxy.fetch.result import Failure, FetchResult
from proxy.tasks import TaskSet, log_to
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import NO_SPAN, Span

_log = logging.getLogger(__name__)

# How often a request whose own wait is over checks whether the probe in flight was refused and is held.
_LOOK_AGAIN_S = 0.1


class ProbeResult(NamedTuple):
    fetched: FetchResult
    is_own: bool  # the probe was sent for this very request, and billed to it


class _Probe(NamedTuple):
    client_request: ClientRequest
    result: asyncio.Task[FetchResult]
    asked_at_s: float


class Revalidator:
    def __init__(self, fetcher: Fetcher, metrics: Metrics) -> None:
        self._fetcher = fetcher
        self._validations = metrics.validations
        self._shared: dict[Credential, _Probe] = {}  # that other requests may wait for
        self._probes = TaskSet(log_to(_log, "a validation"))

    async def ask(self, request: FetchRequest, *, timeout_s: float | None) -> ProbeResult | None:
        """Fetch ``request``, or wait for the same probe of another request; None if that takes too long.

        The timeout counts from when the probe was sent: an upstream that hangs delays the first few requests, and not
        each of them.
        """
        client_request = request.client_request
        probe = self._shared.get(client_request.credential)
        while probe is not None:
            fetched = await self._wait(probe, request, client_request.span, timeout_s=timeout_s)
            if fetched is None:
                return None
            failure = fetched.failure
            if failure is None or _is_for(failure, request, accepts_outage=timeout_s is not None):
                if failure is None or not _is_impatient(failure, probe.client_request, client_request):
                    seen = failure and failure.seen_by(request)
                    return ProbeResult(replace(fetched, failure=seen), is_own=False)
                # Perhaps there is now one of a client that waits longer.
                probe = self._shared.get(client_request.credential)
            else:
                # It failed because of the other request's item. No other request waits for this one's own probe:
                # otherwise requests with items that the upstream rejects would queue behind each other.
                return await self._own_result(self._start(request), request, timeout_s=timeout_s)
        return await self._own_result(self._begin(request), request, timeout_s=timeout_s)

    async def _own_result(self, own: _Probe, request: FetchRequest, *, timeout_s: float | None) -> ProbeResult | None:
        fetched = await self._wait(own, request, NO_SPAN, timeout_s=timeout_s)  # the fetch has a span of its own
        return None if fetched is None else ProbeResult(fetched, is_own=True)

    async def _wait(
        self, probe: _Probe, request: FetchRequest, span: Span, *, timeout_s: float | None
    ) -> FetchResult | None:
        """The result of a probe; None if that takes too long.

        Neither a disconnect nor a timeout of this request ends the probe: others wait for it, and later ones will.
        """
        loop, items, left_s = asyncio.get_running_loop(), len(request.keys), None
        if timeout_s is not None:
            left_s = max(0.0, probe.asked_at_s + timeout_s - loop.time())
        elif request.client_request.limit_wait.deadline_s and probe.client_request is not request.client_request:
            left_s = max(0.0, request.client_request.limit_wait.deadline_s - loop.time())
        with span.flight(items=items, joined=items):
            await asyncio.wait([probe.result], timeout=left_s)
            while timeout_s is None and not probe.result.done():
                if probe.client_request.limit_wait.is_held:
                    return FetchResult(failure=Failure(RateLimited("The upstream's rate limit takes no call now.")))
                await asyncio.wait([probe.result], timeout=_LOOK_AGAIN_S)
        return _result_of(probe.result) if probe.result.done() else None

    def _start(self, request: FetchRequest) -> _Probe:
        fetch = self._probes.start(self._fetcher.fetch(request))
        probe = _Probe(request.client_request, fetch, asyncio.get_running_loop().time())
        request.client_request.reservation.lasts_until(probe.result)
        probe.result.add_done_callback(self._count)
        return probe

    def _begin(self, request: FetchRequest) -> _Probe:
        probe = self._shared[request.client_request.credential] = self._start(request)
        probe.result.add_done_callback(lambda _: self._forget(probe))
        return probe

    def _count(self, result: "asyncio.Task[FetchResult]") -> None:
        """Count the probe once, and not for each request that waits or has stopped waiting for it."""
        label = _label(_result_of(result))
        if label is not None:
            self._validations.labels(label).inc()

    def _forget(self, probe: _Probe) -> None:
        credential = probe.client_request.credential
        if self._shared.get(credential) is probe:
            del self._shared[credential]


def _result_of(done: "asyncio.Task[FetchResult]") -> FetchResult:
    if done.cancelled():
        error = ProxyError("The validation was abandoned.")
    elif done.exception() is not None:
        error = ProxyError("Internal error; see the proxy log.")
    else:
        return done.result()
    return FetchResult(failure=Failure(error))


def _is_for(failure: Failure, waiter: FetchRequest, *, accepts_outage: bool) -> bool:
    """Whether the result of another request's probe counts for ``waiter``; ``accepts_outage``: also if the upstream is
    down."""
    if failure.is_verdict or failure.is_for(waiter):
        return True
    return accepts_outage and blame(failure.cause) is Blame.UNKNOWN


def _is_impatient(failure: Failure, other: ClientRequest, waiter: ClientRequest) -> bool:
    """Whether another client's probe failed because that client gave up on the rate limit earlier than the waiter."""
    is_refusal = isinstance(failure.cause, RateLimited) or rate_limit_refusal(failure.cause) is not None
    return is_refusal and other.limit_wait.deadline_s < waiter.limit_wait.deadline_s


def _label(fetched: FetchResult) -> str | None:
    """The upstream's verdict on the credential, as a label of the metric; None if the upstream was not asked."""
    failure = fetched.failure
    if failure is None:
        return "confirmed" if fetched.is_by_origin else "unknown"
    if isinstance(failure.cause, BudgetSpent | BudgetUnknown | Overloaded | RateLimited | UpstreamDown):
        return None
    if failure.confirms:
        return "confirmed"
    return "refused" if failure.is_verdict else "unknown"
