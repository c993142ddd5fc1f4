"""One probe of the upstream for one credential, however many requests wait for the result."""

import asyncio
import logging
from typing import NamedTuple

from msgspec.structs import replace

from proxy.access.validations import CredentialId, CredentialScope
from proxy.errors import Overloaded, ProxyError, UpstreamDown
from proxy.fetch.fetcher import Fetcher
from proxy.fetch.outcomes import Blame, blame
from proxy.fetch.request import FetchRequest
from proxy.fetch.result import Failure, FetchResult
from proxy.tasks import TaskSet, log_to
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import NO_SPAN, Span

_log = logging.getLogger(__name__)

_Name = tuple[CredentialId, CredentialScope]  # a credential, and what it is to be accepted for


class ProbeResult(NamedTuple):
    fetched: FetchResult
    is_own: bool  # the probe was sent for this very request, and billed to it


class _Probe(NamedTuple):
    result: asyncio.Task[FetchResult]
    asked_at_s: float


class Revalidator:
    def __init__(self, fetcher: Fetcher, metrics: Metrics) -> None:
        self._fetcher = fetcher
        self._validations = metrics.validations
        self._shared: dict[_Name, _Probe] = {}  # that other requests may wait for
        self._probes = TaskSet(log_to(_log, "a validation"))

    async def ask(self, name: _Name, request: FetchRequest, *, timeout_s: float | None) -> ProbeResult | None:
        """Fetch ``request``, or wait for the same probe of another request; None if that takes too long.

        The timeout counts from when the probe was sent: an upstream that hangs delays the first few requests, and not
        each of them.
        """
        items = len(request.keys)
        probe, is_own, span = self._shared.get(name), False, request.client_request.span
        if probe is None:
            probe, is_own, span = self._begin(name, request), True, NO_SPAN  # the fetch has a span of its own
        fetched = await self._wait(probe, span, items=items, timeout_s=timeout_s)
        if fetched is None or is_own:
            return None if fetched is None else ProbeResult(fetched, is_own)
        failure = fetched.failure
        if failure is None or _is_for(failure, request, accepts_outage=timeout_s is not None):
            seen = failure and failure.seen_by(request)
            return ProbeResult(replace(fetched, failure=seen), is_own)
        # It failed because of the other request's item. No other request waits for this one's own probe: of many
        # requests with an item that the upstream rejects, each would wait for all before it.
        probe = self._start(request)
        fetched = await self._wait(probe, NO_SPAN, items=items, timeout_s=timeout_s)
        return None if fetched is None else ProbeResult(fetched, is_own=True)

    async def _wait(self, probe: _Probe, span: Span, *, items: int, timeout_s: float | None) -> FetchResult | None:
        """The result of a probe; None if that takes too long.

        Neither a disconnect nor a timeout of this request ends the probe: others wait for it, and later ones will.
        """
        left_s = None
        if timeout_s is not None:
            left_s = max(0.0, probe.asked_at_s + timeout_s - asyncio.get_running_loop().time())
        with span.flight(items=items, joined=items):
            await asyncio.wait([probe.result], timeout=left_s)
        return _result_of(probe.result) if probe.result.done() else None

    def _start(self, request: FetchRequest) -> _Probe:
        probe = _Probe(self._probes.start(self._fetcher.fetch(request)), asyncio.get_running_loop().time())
        request.client_request.reservation.lasts_until(probe.result)
        probe.result.add_done_callback(self._count)
        return probe

    def _begin(self, name: _Name, request: FetchRequest) -> _Probe:
        probe = self._shared[name] = self._start(request)
        probe.result.add_done_callback(lambda _: self._forget(name, probe))
        return probe

    def _count(self, result: "asyncio.Task[FetchResult]") -> None:
        """Count the probe once, and not for each request that waits or has stopped waiting for it."""
        label = _label(_result_of(result))
        if label is not None:
            self._validations.labels(label).inc()

    def _forget(self, name: _Name, probe: _Probe) -> None:
        if self._shared.get(name) is probe:
            del self._shared[name]


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


def _label(fetched: FetchResult) -> str | None:
    """The upstream's verdict on the credential, as a label of the metric; None if the upstream was not asked."""
    failure = fetched.failure
    if failure is None:
        return "confirmed" if fetched.is_by_origin else "unknown"
    if isinstance(failure.cause, Overloaded | UpstreamDown):
        return None
    if failure.confirms:
        return "confirmed"
    return "refused" if failure.is_verdict else "unknown"
