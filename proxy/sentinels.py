"""One question to the upstream about one credential, however many requests wait for what it says."""

import asyncio
import logging
from dataclasses import replace
from typing import NamedTuple

from proxy.auth import Place
from proxy.errors import Overloaded, ProxyError, UpstreamDown
from proxy.fetcher import NOTHING, Errand, Failure, Fetched, Fetcher
from proxy.metrics import Metrics
from proxy.traces import NO_SPAN

_log = logging.getLogger(__name__)

_Name = tuple[bytes, Place]  # a credential, and what it is to be accepted for


class Said(NamedTuple):
    fetched: Fetched
    is_own: bool  # asked for this very request, and billed to it


class _Question(NamedTuple):
    answer: asyncio.Task[Fetched]
    asked_at_s: float


class Sentinels:
    def __init__(self, fetcher: Fetcher, metrics: Metrics) -> None:
        self._fetcher = fetcher
        self._validations = metrics.validations
        self._questions: dict[_Name, _Question] = {}

    async def ask(self, name: _Name, errand: Errand, *, patience_s: float | None) -> Said | None:
        """Fetch ``errand``, or wait for the same question of another request; None if that takes too long.

        The patience is counted from when the question was asked, so that an upstream that hangs delays the first few
        requests and not each of them.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            question, is_own, span = self._questions.get(name), False, errand.span
            if question is None:
                question, is_own, span = self._begin(name, errand), True, NO_SPAN  # the fetch tells of itself
            timeout_s = None
            if patience_s is not None:
                timeout_s = max(0.0, min(began_s, question.asked_at_s) + patience_s - loop.time())
            # Neither this request's end nor its patience ends the question: others wait for it, and so will later ones.
            with span.flight(items=len(errand.keys), joined=len(errand.keys)):
                await asyncio.wait([question.answer], timeout=timeout_s)
            if not question.answer.done():
                return None
            self._forget(name, question)
            fetched = self._result(question.answer)
            failure = fetched.failure
            if is_own or failure is None or failure.is_verdict or failure.is_for(name[0]):
                return Said(fetched, is_own)
            # It was about the other's item: the next to ask is this request, or another that waited.

    def _begin(self, name: _Name, errand: Errand) -> _Question:
        loop = asyncio.get_running_loop()
        question = _Question(loop.create_task(self._fetcher.fetch(errand)), loop.time())
        self._questions[name] = question
        question.answer.add_done_callback(lambda _: self._ended(name, question))
        return question

    def _ended(self, name: _Name, question: _Question) -> None:
        """Count the question, once, and not each request that waits or has stopped waiting for its answer."""
        self._forget(name, question)
        if not question.answer.cancelled() and (raised := question.answer.exception()) is not None:
            _log.error("a question to the upstream failed in a way nobody thought of", exc_info=raised)
        result = _verdict(self._result(question.answer))
        if result is not None:
            self._validations.labels(result).inc()

    def _forget(self, name: _Name, question: _Question) -> None:
        if self._questions.get(name) is question:
            del self._questions[name]

    def _result(self, answer: "asyncio.Task[Fetched]") -> Fetched:
        if answer.cancelled():
            error = ProxyError("The question was abandoned.")
        elif answer.exception() is not None:
            error = ProxyError("The proxy failed; its log says how.")
        else:
            return answer.result()
        return replace(NOTHING, failure=Failure(error))


def _verdict(fetched: Fetched) -> str | None:
    """What the upstream said of the credential, as a label of the metric; None if it was not even asked."""
    failure = fetched.failure
    if failure is None:
        return "confirmed" if fetched.is_by_origin else "unknown"
    if isinstance(failure.cause, Overloaded | UpstreamDown):
        return None
    return "refused" if failure.is_verdict else "unknown"
