"""Merges what many requests miss into few upstream calls, and takes merged calls that fail apart again."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from http import HTTPStatus
from itertools import accumulate, pairwise
from operator import le
from typing import Any, NamedTuple, TypeVar

from multidict import CIMultiDict

from proxy.budget import Budget
from proxy.errors import ProxyError
from proxy.fetch.batch_entry import BatchEntry
from proxy.fetch.failover import Failover
from proxy.fetch.isolation import MergeLimits, RetryBudget
from proxy.fetch.outcomes import (
    Blame,
    CallFailure,
    EmbedResult,
    ErrorResponse,
    InvalidResponse,
    Outcome,
    blame,
    is_outage,
    is_success,
    without_quotes,
)
from proxy.fetch.slots import Slots
from proxy.protocol import embedding_request, embedding_response
from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.embedding_response import InvalidEmbeddingResponse
from proxy.protocol.header_kinds import is_assertion
from proxy.protocol.json_parts import LARGE_BYTES
from proxy.protocol.provider import Limits
from proxy.protocol.tokens import estimated_tokens, share_tokens, weight
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import Calls
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.flow_control import FlowControl
from proxy.upstream.router import Origin
from proxy.worker_thread import Worker

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

# Responses with these are stored. Gateways say other things with other 2xx (246: succeeded, and flagged), which are
# for the client whose own body it was, and for no cache.
_STORABLE = frozenset({200, 201})
_FIRST_PROBES = 2
# Some upstreams answer nobody that does not name itself; the body is JSON, however each client says so.
_SPEAKER = frozenset({"user-agent", "content-type"})


class _Waiting(NamedTuple):
    entry: BatchEntry
    answered: "asyncio.Future[Outcome | ProxyError]"
    since_s: float


@dataclass(slots=True)
class _Group:
    """Shares that may travel together: ``waiting`` gather while calls are ``under_way``."""

    waiting: "list[_Waiting]"
    under_way: int = 0
    timer: asyncio.TimerHandle | None = None


class Batcher:
    """An idle group sends at once, so that a lone request waits for nothing. While a call is under way what comes
    later gathers, and leaves together when the call returns, when the window has passed, or when a call is full."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        window_s: float,
        concurrency: int,
        timeout_s: float,
        max_queued_items: int,
        max_queued_bytes: int,
        max_incoming_bytes: int,
        room: Callable[[], Awaitable[None]],
    ) -> None:
        """A call waits for ``room`` before it is sent: for memory in which its response is held until it is stored."""
        self._metrics = metrics
        self._window_s = window_s
        waited_s = metrics.stage_seconds["slot"].observe
        slots = Slots(concurrency, timeout_s=timeout_s, waited_s=waited_s, room=room)
        self._failover = Failover(slots, metrics)
        self._max_calls_a_tenant = slots.max_calls_a_tenant
        # Submitted and not answered.
        self._queued_items = _queue(max_queued_items, "items that wait for the upstream")
        self._queued_bytes = _queue(max_queued_bytes, "bytes that wait for the upstream")
        self._flow_control = FlowControl(max_incoming_bytes)
        self._worker = Worker("responses")
        self._groups: dict[bytes, _Group] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._budgets: dict[Origin, RetryBudget] = {}
        self._merge_limits = MergeLimits(time.monotonic)
        metrics.queued_items.set_function(lambda: self._queued_items.used)
        metrics.queue_limit_items.set(max_queued_items)

    def __repr__(self) -> str:
        return f"<Batcher {len(self._groups)} groups, {len(self._calls)} calls, {self._queued_items.used} items>"

    def split(self, origin: Origin, asked: EmbeddingRequest, items: list[Any]) -> list[slice]:
        """Cut ``items`` into runs that each fit into a call."""
        sizes = [(1, estimated_tokens(asked.kind, item), weight(asked.kind, item)) for item in items]
        limits = origin.limits
        if all(map(le, map(sum, zip(*sizes, strict=True)), limits)):  # as nearly all do
            return [slice(0, len(sizes))] if sizes else []
        return list(_runs(sizes, limits))

    async def submit(self, entry: BatchEntry) -> Outcome:
        """What became of a share that fits into a call. Raises `ProxyError`; `Overloaded` when too much waits."""
        with self._queued(entry):
            self._budget(entry.origin).requested()
            answered: asyncio.Future[Outcome | ProxyError] = asyncio.get_running_loop().create_future()
            self._enqueue(entry, answered)
            outcome = await answered
        if isinstance(outcome, ProxyError):
            raise outcome.again()
        return outcome

    @contextmanager
    def _queued(self, entry: BatchEntry) -> Iterator[None]:
        """Count a share while it waits. Raises `Overloaded`."""
        request = id(entry.asked)  # the parts of a large request are one request's
        with ExitStack() as stack:
            for budget, amount in ((self._queued_items, len(entry.items)), (self._queued_bytes, len(entry.body))):
                budget.take(entry.tenant, request, amount)
                stack.callback(budget.give_back, entry.tenant, request, amount)
            yield

    def takes_retry(self, origin: Origin) -> bool:
        """Whether one more attempt may be made after a failure that may be an outage; it counts as failed until some
        call succeeds."""
        budget = self._budget(origin)
        if not budget.calls():
            return False
        budget.spend(1)
        return True

    async def replay(self, entry: BatchEntry) -> tuple[UpstreamResponse, bool]:
        """The upstream's response to a client's own body, to be relayed, and whether the origin itself gave it.

        Raises `ProxyError`.
        """
        self._metrics.upstream_merged_requests.observe(1)
        with self._calls_for([entry]) as calls, self._flow_control.response() as flow:
            answer, origin = await self._failover.embed(
                entry, entry.asked.body, len(entry.asked.items), calls, flow=flow
            )
            if is_success(answer.status):
                self._bill(entry, calls, await self._with(answer, embedding_response.billed_tokens, answer.body))
        if not is_outage(answer):
            self._budget(entry.origin).succeeded()
        return answer, origin is entry.origin

    def _budget(self, origin: Origin) -> RetryBudget:
        return self._budgets.setdefault(origin, RetryBudget())

    def _calls_for(self, entries: list[BatchEntry]) -> Calls:
        first = entries[0]
        return first.span.calls([entry.span for entry in entries], model=lambda: self._metrics.label_of(first.model))

    def abandon(self) -> None:
        """Cancel the calls under way; whoever waits for one is told so."""
        for call in self._calls:
            call.cancel()
        self._worker.close()

    def _enqueue(self, entry: BatchEntry, answered: "asyncio.Future[Outcome | ProxyError]") -> None:
        if not entry.may_merge:
            self._start(None, _Group([]), [_Waiting(entry, answered, time.perf_counter())])
            return
        group = self._groups.setdefault(entry.group, _Group([]))
        group.waiting.append(_Waiting(entry, answered, time.perf_counter()))
        if group.under_way >= self._max_calls_a_tenant:
            return  # the next call that returns takes it along
        if (
            not group.under_way
            or sum(len(waiting.entry.items) for waiting in group.waiting) >= self._merge_limit(entry).items
        ):
            self._send_waiting(entry.group, group)
        elif group.timer is None:
            loop = asyncio.get_running_loop()
            group.timer = loop.call_later(self._window_s, self._send_waiting, entry.group, group)

    def _merge_limit(self, entry: BatchEntry) -> Limits:
        limits = entry.origin.merge_limits
        return limits._replace(items=self._merge_limits.items(entry.origin.name, entry.asked.model, limits.items))

    def _send_waiting(self, name: bytes, group: _Group) -> None:
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        waiting, group.waiting = group.waiting, []
        # Measured one by one, and no further than there are calls to make: a great many may wait.
        sizes = ((len(one.entry.items), one.entry.tokens, len(one.entry.body)) for one in waiting)
        for run in _runs(sizes, self._merge_limit(waiting[0].entry)):
            if group.under_way >= self._max_calls_a_tenant:
                group.waiting = waiting[run.start :]
                break
            self._start(name, group, waiting[run])

    def _start(self, name: bytes | None, group: _Group, batch: list[_Waiting]) -> None:
        group.under_way += 1
        call = asyncio.create_task(self._call(name, group, batch))
        self._calls.add(call)
        call.add_done_callback(self._ended)

    def _ended(self, call: "asyncio.Task[None]") -> None:
        self._calls.discard(call)
        if not call.cancelled() and (error := call.exception()) is not None:
            _log.error("unexpected error in an upstream call", exc_info=error)

    async def _call(self, name: bytes | None, group: _Group, batch: list[_Waiting]) -> None:
        """Make one call; every code path resolves every share's future. A ``group`` without name is of one share."""
        now_s = time.perf_counter()
        for waiting in batch:
            self._metrics.stage_seconds["wait"].observe(now_s - waiting.since_s)
        outcomes: Sequence[Outcome | ProxyError] = [ProxyError("The call was abandoned.")] * len(batch)
        try:
            outcomes = await self._outcomes([waiting.entry for waiting in batch])
        finally:
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if not waiting.answered.done():
                    waiting.answered.set_result(outcome)
            group.under_way -= 1
            if name is not None and group.waiting:
                self._send_waiting(name, group)
            elif name is not None and not group.under_way:
                self._groups.pop(name, None)

    async def _outcomes(self, entries: list[BatchEntry]) -> Sequence[Outcome | ProxyError]:
        if len(entries) == 1:
            return [await self._alone(entries[0])]
        outcomes = await self._together(entries)
        if isinstance(outcomes, list):
            # What is unusable of a merged response may have become so in company.
            spoilt = [i for i, outcome in enumerate(outcomes) if outcome.unusable is not None]
            again = await asyncio.gather(*(self._alone(entries[i]) for i in spoilt))
            replaced = dict(zip(spoilt, again, strict=True))
            return [replaced.get(i, outcome) for i, outcome in enumerate(outcomes)]
        return await self._isolated(entries, outcomes)

    async def _isolated(self, entries: list[BatchEntry], failure: CallFailure) -> Sequence[Outcome | ProxyError]:
        """What becomes of the shares of a merged call that failed: asked alone, each once, if that could help.

        A failed merged call says something about one of its members until shown otherwise. Where it may just as well
        be an outage, two are asked first. If they fail, too, more are asked as long as that makes no more calls than
        there would have been without merging, or the budget lasts.
        """
        outcomes: list[Outcome | ProxyError] = [without_quotes(failure)] * len(entries)
        is_about_first = _is_about_first(failure, entries)
        about = Blame.CALL if is_about_first else blame(failure)
        if about is Blame.EVERYBODY:
            return outcomes
        budget = self._budget(entries[0].origin)
        start, size = 0, len(entries) if about is Blame.CALL else _FIRST_PROBES
        saved = len(entries) - 1  # calls, by merging
        while start < len(entries):
            probed = range(start, min(len(entries), start + size))
            if about is Blame.UNKNOWN:
                probed = probed[: budget.calls(saved)]
                budget.spend(len(probed), saved)
                saved = max(0, saved - len(probed))
            if not probed:
                return outcomes
            for i, outcome in zip(
                probed, await asyncio.gather(*(self._alone(entries[i]) for i in probed)), strict=True
            ):
                outcomes[i] = outcome
            may_be_outage = all(_is_outage(outcomes[i]) for i in probed)
            if not may_be_outage:
                budget.succeeded()
            start, size = probed.stop, 2 * size if may_be_outage else len(entries)
            about = about if may_be_outage else Blame.CALL
        if not is_about_first and _is_about_merging(outcomes):
            items = sum(len(entry.items) for entry in entries)
            is_certain = blame(failure) is Blame.CALL
            self._merge_limits.merging_failed(
                entries[0].origin.name, entries[0].asked.model, items, is_certain=is_certain
            )
        return outcomes

    async def _alone(self, entry: BatchEntry) -> Outcome | ProxyError:
        """One share's own call."""
        self._metrics.upstream_merged_requests.observe(1)
        outcome = await self._sent(entry, [entry], entry.body, entry.items)
        if isinstance(outcome, Sent):
            return next(_shared_out([entry], entry.items, outcome))
        return outcome

    async def _together(self, entries: list[BatchEntry]) -> "list[EmbedResult] | CallFailure":
        """One call for several shares."""
        # Two parts of one large request may meet in a call.
        self._metrics.upstream_merged_requests.observe(len({id(entry.asked) for entry in entries}))
        items = [item for entry in entries for item in entry.items]
        first = replace(entries[0], headers=_in_common([entry.headers for entry in entries]))
        outcome = await self._sent(first, entries, embedding_request.reduced_body(first.asked, items), items)
        return list(_shared_out(entries, items, outcome)) if isinstance(outcome, Sent) else outcome

    async def _sent(
        self, entry: BatchEntry, entries: list[BatchEntry], body: bytes, items: list[Any]
    ) -> "Sent | CallFailure":
        """Send ``body`` for ``entries`` with what ``entry`` says besides, and read the response."""
        with self._calls_for(entries) as calls, self._flow_control.response() as flow:
            try:
                answer, origin = await self._failover.embed(entry, body, len(items), calls, flow=flow)
            except ProxyError as error:
                return error
            if not is_success(answer.status):
                return ErrorResponse(answer, body, is_own_body=body == entry.asked.body)
            by_origin = origin is entry.origin
            try:
                parsed = await self._with(answer, _read, entry, origin, answer, len(items))
            except InvalidEmbeddingResponse as invalid:
                self._metrics.upstream_rejected.labels(invalid.reason).inc()
                self._bill(entry, calls, await self._with(answer, embedding_response.billed_tokens, answer.body))
                is_own_body = body == entry.asked.body
                return InvalidResponse(answer, body, invalid.reason, by_origin, is_own_body, invalid.embedding_text)
            self._metrics.admit_model(entry.model)
            self._bill(entry, calls, parsed.usage["prompt_tokens"])
        self._budget(entry.origin).succeeded()
        if len(entries) > 1:
            self._merge_limits.merging_worked(entry.origin.name, entry.asked.model)
        if parsed.unusable is not None:
            self._metrics.upstream_rejected.labels(parsed.unusable).inc()
        return Sent(parsed, answer, body, by_origin)

    async def _with(self, answer: UpstreamResponse, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call ``function``, which parses ``answer``: elsewhere if that takes long."""
        if len(answer.body) > LARGE_BYTES or "Content-Encoding" in answer.headers:
            return await self._worker.run(function, *arguments)
        return function(*arguments)

    def _bill(self, entry: BatchEntry, calls: Calls, tokens: int) -> None:
        if tokens:
            self._metrics.admit_model(entry.model)
        self._metrics.of_model(entry.model).bill(tokens)
        calls.billed(tokens)


def _queue(limit: int, what: str) -> Budget:
    # After a start all clients are strangers until their first call returns, so most of the queue is for these.
    return Budget(limit, what, unverified_limit=limit * 7 // 8)


class Sent(NamedTuple):
    """A response that checked out, to a call with ``body``."""

    parsed: embedding_response.EmbeddingResponse
    answer: UpstreamResponse
    body: bytes
    by_origin: bool


def _is_about_first(failure: CallFailure, entries: list[BatchEntry]) -> bool:
    """Whether the upstream may have refused the assertion of the first share alone, which went up for all."""
    if not isinstance(failure, ErrorResponse) or failure.answer.status != HTTPStatus.UNAUTHORIZED:
        return False
    return len({tuple(_assertions(entry.headers)) for entry in entries}) > 1


def _assertions(given: CIMultiDict[str]) -> Iterator[tuple[str, str]]:
    return ((name.lower(), value) for name, value in given.items() if is_assertion(name.lower()))


def _is_about_merging(outcomes: list[Outcome | ProxyError]) -> bool:
    """Whether a merged call failed because it was merged: each of its shares, asked alone, has got an answer, or each
    one that can be relayed but not taken apart."""
    return all(isinstance(outcome, EmbedResult) for outcome in outcomes) or all(
        isinstance(outcome, InvalidResponse) and outcome.confirms for outcome in outcomes
    )


def _is_outage(outcome: Outcome | ProxyError) -> bool:
    """Whether a share that was asked alone failed in a way that may be an outage."""
    return not isinstance(outcome, EmbedResult) and blame(outcome) is not Blame.CALL


def _read(
    entry: BatchEntry, origin: Origin, answer: UpstreamResponse, items: int
) -> embedding_response.EmbeddingResponse:
    """The response of ``origin`` to a call for ``items`` items of entries like this one.

    Raises `InvalidEmbeddingResponse`.
    """
    asked, provider = entry.asked, origin.provider
    if answer.status not in _STORABLE:
        raise InvalidEmbeddingResponse("status")
    for name, pattern in provider.fallback_markers.items():
        if fnmatchcase(answer.headers.get(name, ""), pattern):
            raise InvalidEmbeddingResponse("disowned")
    parsed = embedding_response.parse_response(
        answer.plain_body(), provider, items=items, packed=asked.packed, reads_base64=asked.reads_base64
    )
    # A server of a single model may answer to any name, and to none.
    if provider.is_multi_vector_model(parsed.model):
        raise InvalidEmbeddingResponse("multi-vector")
    if origin is entry.origin:
        origin.remember(entry.credential_id.credentials_mac, asked.model, parsed.model)
        return parsed if parsed.model else replace(parsed, model=asked.model or "")
    # By the operator's word it is the same model, which in one answer and in the store has one name: the origin's own,
    # or until that is known none.
    return replace(parsed, model=entry.origin.name_of(entry.credential_id.credentials_mac, asked.model))


def _in_common(given: list[CIMultiDict[str]]) -> CIMultiDict[str]:
    """Headers common to all merged requests, plus User-Agent and Content-Type: what only one of them has (a condition,
    a deadline, a cookie) must not decide how the others fare.

    A proxy in front renews its assertions all the time, so hardly two requests of one credential have the same. Those
    of the first go up: without any, an upstream that asks for one would refuse them all (see `_is_about_first`).
    """
    first, *others = given
    return CIMultiDict(
        (name, value)
        for name, value in first.items()
        if name.lower() in _SPEAKER
        or is_assertion(name.lower())
        or all(value in other.getall(name, ()) for other in others)
    )


def _shared_out(entries: list[BatchEntry], items: list[Any], sent: Sent) -> Iterator[EmbedResult]:
    """Each share's part of one response."""
    parsed, answer = sent.parsed, sent.answer
    total = parsed.usage["prompt_tokens"]
    tokens = share_tokens(total, [weight(entries[0].asked.kind, item) for item in items])
    ends = accumulate((len(entry.items) for entry in entries), initial=0)
    for start, end in pairwise(ends):
        billed = sum(tokens[start:end])
        usage = parsed.usage if len(entries) == 1 else {"prompt_tokens": billed, "total_tokens": billed}
        found = parsed.vectors[start:end]
        is_own_body = len(entries) == 1 and sent.body == entries[0].asked.body
        unusable = None
        if parsed.unusable is not None and None in found:
            unusable = InvalidResponse(answer, sent.body, parsed.unusable, sent.by_origin, is_own_body)
        yield EmbedResult(
            vectors=found,
            tokens=tokens[start:end],
            model=parsed.model,
            usage=usage,
            extra_fields=parsed.extra_fields,
            status=answer.status,
            headers=answer.headers,
            is_exact=len(entries) == 1,
            is_own_body=is_own_body,
            by_origin=sent.by_origin,
            unusable=unusable,
        )


def _runs(sizes: Iterable[tuple[int, ...]], limits: tuple[int, ...]) -> Iterator[slice]:
    """Cut a sequence, in order, into the longest runs whose summed sizes keep within ``limits``.

    An element that alone exceeds them is a run of its own: the upstream shall say what it thinks of it.
    """
    start, end, used = 0, -1, (0,) * len(limits)
    for end, size in enumerate(sizes):
        grown = tuple(map(sum, zip(used, size, strict=True)))
        if end > start and any(total > limit for total, limit in zip(grown, limits, strict=True)):
            yield slice(start, end)
            start, grown = end, size
        used = grown
    if end >= start:
        yield slice(start, end + 1)
