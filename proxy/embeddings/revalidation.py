"""One question to the upstream about one credential, however many requests wait for what it says."""

import asyncio
import logging
from dataclasses import replace
from typing import NamedTuple

from proxy.access.validations import CredentialId, CredentialScope
from proxy.errors import Overloaded, ProxyError, UpstreamDown
from proxy.fetch.fetcher import NOTHING, Failure, Fetcher, FetchRequest, FetchResult
from proxy.fetch.outcomes import Blame, blame
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import NO_SPAN, Span

_log = logging.getLogger(__name__)

_Name = tuple[CredentialId, CredentialScope]  # a credential, and what it is to be accepted for


class ProbeResult(NamedTuple):
    fetched: FetchResult
    is_own: bool  # asked for this very request, and billed to it


class _Probe(NamedTuple):
    answer: asyncio.Task[FetchResult]
    asked_at_s: float


class Revalidator:
    def __init__(self, fetcher: Fetcher, metrics: Metrics) -> None:
        self._fetcher = fetcher
        self._validations = metrics.validations
        self._questions: dict[_Name, _Probe] = {}  # that others may wait for
        self._under_way: set[asyncio.Task[FetchResult]] = set()

    async def ask(self, name: _Name, errand: FetchRequest, *, timeout_s: float | None) -> ProbeResult | None:
        """Fetch ``errand``, or wait for the same question of another request; None if that takes too long.

        The timeout is counted from when the question was asked, so that an upstream that hangs delays the first few
        requests and not each of them.
        """
        items = len(errand.keys)
        question, is_own, span = self._questions.get(name), False, errand.span
        if question is None:
            question, is_own, span = self._begin(name, errand), True, NO_SPAN  # the fetch tells of itself
        fetched = await self._answer(name, question, span, items=items, timeout_s=timeout_s)
        if fetched is None or is_own:
            return None if fetched is None else ProbeResult(fetched, is_own)
        failure = fetched.failure
        if failure is None or _is_for(failure, errand, takes_silence=timeout_s is not None):
            told = failure and failure.told_to(errand)
            return ProbeResult(replace(fetched, failure=told), is_own)
        # It was about the other request's item. Its own question is not one that others wait for: of many requests with
        # an item that the upstream refuses, each would wait for all that came before it.
        question = self._start(errand)
        fetched = await self._answer(name, question, NO_SPAN, items=items, timeout_s=timeout_s)
        return None if fetched is None else ProbeResult(fetched, is_own=True)

    async def _answer(
        self, name: _Name, question: _Probe, span: Span, *, items: int, timeout_s: float | None
    ) -> FetchResult | None:
        """What the upstream says to a question; None if that takes too long.

        Neither this request's end nor its timeout ends the question: others wait for it, and so will later ones.
        """
        left_s = None
        if timeout_s is not None:
            left_s = max(0.0, question.asked_at_s + timeout_s - asyncio.get_running_loop().time())
        with span.flight(items=items, joined=items):
            await asyncio.wait([question.answer], timeout=left_s)
        if not question.answer.done():
            return None
        self._forget(name, question)
        return self._result(question.answer)

    def _start(self, errand: FetchRequest) -> _Probe:
        loop = asyncio.get_running_loop()
        question = _Probe(loop.create_task(self._fetcher.fetch(errand)), loop.time())
        self._under_way.add(question.answer)
        errand.reservation.lasts_until(question.answer)
        question.answer.add_done_callback(self._ended)
        return question

    def _begin(self, name: _Name, errand: FetchRequest) -> _Probe:
        question = self._questions[name] = self._start(errand)
        question.answer.add_done_callback(lambda _: self._forget(name, question))
        return question

    def _ended(self, answer: "asyncio.Task[FetchResult]") -> None:
        """Count the question, once, and not each request that waits or has stopped waiting for its answer."""
        self._under_way.discard(answer)
        if not answer.cancelled() and (raised := answer.exception()) is not None:
            _log.error("unexpected error in a question to the upstream", exc_info=raised)
        result = _verdict(self._result(answer))
        if result is not None:
            self._validations.labels(result).inc()

    def _forget(self, name: _Name, question: _Probe) -> None:
        if self._questions.get(name) is question:
            del self._questions[name]

    def _result(self, answer: "asyncio.Task[FetchResult]") -> FetchResult:
        if answer.cancelled():
            error = ProxyError("The question was abandoned.")
        elif answer.exception() is not None:
            error = ProxyError("Internal error; see the proxy log.")
        else:
            return answer.result()
        return replace(NOTHING, failure=Failure(error))


def _is_for(failure: Failure, errand: FetchRequest, *, takes_silence: bool) -> bool:
    """Whether what became of another request's question answers this one's, ``errand``; ``takes_silence``: so does an
    upstream that is out of order."""
    if failure.is_verdict or failure.is_for(errand):
        return True
    return takes_silence and blame(failure.cause) is Blame.UNKNOWN


def _verdict(fetched: FetchResult) -> str | None:
    """What the upstream said of the credential, as a label of the metric; None if it was not even asked."""
    failure = fetched.failure
    if failure is None:
        return "confirmed" if fetched.is_by_origin else "unknown"
    if isinstance(failure.cause, Overloaded | UpstreamDown):
        return None
    if failure.confirms:
        return "confirmed"
    return "refused" if failure.is_verdict else "unknown"
