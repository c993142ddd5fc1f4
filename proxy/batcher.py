"""Merges what many requests miss into few upstream calls."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from multidict import CIMultiDict, CIMultiDictProxy

from proxy import reply, wire
from proxy.cors import origin_of
from proxy.errors import Overloaded, ProxyError
from proxy.metrics import Metrics
from proxy.origins import Alternative, Origin
from proxy.reply import InvalidAnswer
from proxy.tokens import estimated_tokens, share_tokens, weight
from proxy.traces import NO_SPAN, Calls, Span
from proxy.upstream import Answer
from proxy.vectors import Vector
from proxy.wire import EmbeddingRequest

_log = logging.getLogger(__name__)

_OK = 200
_TELL_EVERY_S = 60.0
# Some upstreams answer nobody that does not name itself; the body is JSON, however each client says so.
_SPEAKER = frozenset({"user-agent", "content-type"})
_TOO_MANY_REQUESTS, _SERVER_ERROR = 429, 500
# Answers that blame what was sent. In a merged call that may be one caller's item, so each is asked for alone.
_BLAMES_INPUT = frozenset({400, 413, 422})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
    """One caller's items of a call. Shares of equal ``group`` may travel together.

    ``group`` must determine everything a call says besides its items: origin, path, credentials, parameters, the rest.
    """

    group: bytes
    tenant: bytes  # equal for requests under one credential
    origin: Origin
    target: str  # of the client's request
    headers: CIMultiDict[str]
    asked: EmbeddingRequest
    items: list[Any]
    body: bytes  # asks for just these items
    span: Span = NO_SPAN  # of the caller's request

    @property
    def tokens(self) -> int:
        return sum(estimated_tokens(self.asked.kind, item) for item in self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """``vectors[i]`` and ``tokens[i]`` are those of the share's i-th item."""

    vectors: list[Vector]
    tokens: list[int]
    model: str  # "" if nobody named it
    usage: dict[str, Any]
    told: dict[str, Any]  # what else the answer said, as its `id`
    headers: CIMultiDictProxy[str]
    is_exact: bool  # the call was for this share alone
    by_origin: bool  # and not by one that stood in for it


@dataclass(frozen=True, slots=True)
class Refused:
    """Any status but 200, as it is, and the body it is about."""

    answer: Answer
    body: bytes

    @property
    def blames_input(self) -> bool:
        return self.answer.status in _BLAMES_INPUT


@dataclass(frozen=True, slots=True)
class Unusable:
    """A 200 that did not check out. It may be relayed to a client whose own body was ``body``, and to no other."""

    answer: Answer
    body: bytes
    reason: str


Outcome = Delivered | Refused | Unusable


class _Waiting(NamedTuple):
    share: Share
    answered: "asyncio.Future[Outcome | ProxyError]"
    since_s: float


@dataclass(slots=True)
class _Group:
    """Shares that may travel together: ``waiting`` gather while calls are ``under_way``."""

    waiting: "list[_Waiting]"
    under_way: int = 0
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Tenant:
    """A credential's share of the slots."""

    slots: asyncio.Semaphore
    calls: int = 0  # that have a slot or wait for one


class Batcher:
    """An idle group sends at once, so that a lone request waits for nothing. While a call is under way what comes
    later gathers, and leaves together when the call returns, when the window has passed, or when a call is full."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        window_s: float,
        concurrency: int,
        patience_s: float,
        max_queued_items: int,
        max_queued_bytes: int,
    ) -> None:
        self._metrics = metrics
        self._window_s = window_s
        self._concurrency = concurrency  # calls to one origin at a time
        self._slots: dict[Origin, asyncio.Semaphore] = {}
        self._patience_s = patience_s  # how long a call waits for a slot
        # One tenant whose calls take for ever must not have all the slots.
        self._max_calls_a_tenant = max(1, concurrency // 2)
        self._tenants: dict[tuple[Origin, bytes], _Tenant] = {}
        self._max_queued_items = max_queued_items
        self._max_queued_bytes = max_queued_bytes
        self._groups: dict[bytes, _Group] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._told_at_s: dict[tuple[str, str], float] = {}
        self._queued_items = 0  # submitted and not answered
        self._queued_bytes = 0
        metrics.queued_items.set_function(lambda: self._queued_items)
        metrics.queue_limit_items.set(max_queued_items)

    def __repr__(self) -> str:
        return f"<Batcher {len(self._groups)} groups, {len(self._calls)} calls, {self._queued_items} items>"

    def split(self, origin: Origin, asked: EmbeddingRequest, items: list[Any]) -> list[slice]:
        """Cut ``items`` into runs that each fit into a call."""
        sizes = [(1, estimated_tokens(asked.kind, item), weight(asked.kind, item)) for item in items]
        return list(_runs(sizes, origin.limits))

    async def submit(self, share: Share) -> Outcome:
        """What became of a share that fits into a call. Raises `ProxyError`; `Overloaded` when too much waits."""
        items, size = len(share.items), len(share.body)
        if self._queued_items + items > self._max_queued_items or self._queued_bytes + size > self._max_queued_bytes:
            raise Overloaded("Too many items wait for the upstream.")
        self._queued_items += items
        self._queued_bytes += size
        answered: asyncio.Future[Outcome | ProxyError] = asyncio.get_running_loop().create_future()
        try:
            self._enqueue(share, answered)
            outcome = await answered
        finally:
            self._queued_items -= items
            self._queued_bytes -= size
        if isinstance(outcome, ProxyError):
            raise outcome.again()
        return outcome

    async def replay(self, share: Share) -> Answer:
        """The upstream's answer to a client's own body, unread. Raises `ProxyError`."""
        with self._calls_for([share]) as calls:
            answer, _ = await self._embed(share, share.asked.body, len(share.asked.items), calls)
        return answer

    def _calls_for(self, shares: list[Share]) -> Calls:
        first = shares[0]
        return first.span.calls(
            [share.span for share in shares], model=lambda: self._metrics.label_of(first.asked.model)
        )

    async def _embed(self, share: Share, body: bytes, items: int, calls: Calls) -> tuple[Answer, Origin]:
        """Ask the origin and, where it has no answer, in order, those that serve the same model; says who answered.

        If none of them has one, what the origin itself said is the answer. Raises `ProxyError`.
        """
        failure: Answer | ProxyError | None = None
        here = share.origin.provider
        for way in share.origin.ways:
            if failure is not None:
                if not wire.reads_alike(body, here, way.origin.provider, model=way.model):
                    continue
                self._metrics.upstream_fallbacks.labels(way.origin.name).inc()
                self._tell_stand_in(share.origin.name, way.origin.name, failure)
            try:
                answer = await self._ask(share, way, body, items, calls)
            except ProxyError as error:
                failure = failure or error
                continue
            is_good = answer.status == _OK and not reply.is_error(answer.body)
            if is_good or (failure is None and not is_out_of_order(answer)):
                return answer, way.origin
            failure = failure or answer
        if isinstance(failure, Answer):
            return failure, share.origin
        raise failure or ProxyError("No upstream was asked.")

    def _tell_stand_in(self, name: str, other: str, failure: Answer | ProxyError) -> None:
        """Now and then: an outage of an hour is one line a minute."""
        now_s = time.monotonic()
        if now_s - self._told_at_s.get((name, other), -_TELL_EVERY_S) >= _TELL_EVERY_S:
            self._told_at_s[name, other] = now_s
            why = f"it answers {failure.status}" if isinstance(failure, Answer) else failure.message
            _log.warning("upstream %s has no answer (%s); %s is asked in its place", name, why, other)

    async def _ask(self, share: Share, way: Alternative, body: bytes, items: int, calls: Calls) -> Answer:
        if way.model is not None:
            body = wire.renamed_body(body, way.model)
        headers = way.origin.outbound(_for_body(share, body))
        origin = way.origin
        url = origin.routes.embeddings(share.target, model=way.model)
        async with self._slot(origin, share.tenant):
            with calls.call("POST", url, upstream=origin.name, provider=origin.provider.name, items=items) as call:
                answer = await origin.client.embed(url, call.outbound(headers), body, items=items)
                call.answered(answer.status)
        share.origin.cors.learn(origin_of(headers), answer.status, answer.headers)
        return answer

    @asynccontextmanager
    async def _slot(self, origin: Origin, credential: bytes) -> AsyncIterator[None]:
        """One of the calls to ``origin`` that may be under way at a time, of the tenant and in all.

        Raises `Overloaded`.
        """
        name = origin, credential
        all_slots = self._slots.setdefault(origin, asyncio.Semaphore(self._concurrency))
        tenant = self._tenants.setdefault(name, _Tenant(asyncio.Semaphore(self._max_calls_a_tenant)))
        tenant.calls += 1
        async with AsyncExitStack() as held:
            held.callback(self._forget, name, tenant)
            try:
                async with asyncio.timeout(self._patience_s):
                    for slots in (tenant.slots, all_slots):
                        await slots.acquire()
                        held.callback(slots.release)
            except TimeoutError:
                raise Overloaded("Too many calls wait for the upstream.") from None
            yield

    def _forget(self, name: tuple[Origin, bytes], tenant: "_Tenant") -> None:
        tenant.calls -= 1
        if not tenant.calls:
            del self._tenants[name]

    def abandon(self) -> None:
        """Cancel the calls under way; whoever waits for one is told so."""
        for call in self._calls:
            call.cancel()

    def _enqueue(self, share: Share, answered: "asyncio.Future[Outcome | ProxyError]") -> None:
        group = self._groups.setdefault(share.group, _Group([]))
        group.waiting.append(_Waiting(share, answered, time.perf_counter()))
        if group.under_way >= self._max_calls_a_tenant:
            return  # the next call that returns takes it along
        if (
            not group.under_way
            or sum(len(waiting.share.items) for waiting in group.waiting) >= share.origin.limits.items
        ):
            self._send_waiting(share.group, group)
        elif group.timer is None:
            loop = asyncio.get_running_loop()
            group.timer = loop.call_later(self._window_s, self._send_waiting, share.group, group)

    def _send_waiting(self, name: bytes, group: _Group) -> None:
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        waiting, group.waiting = group.waiting, []
        # Measured one by one, and no further than there are calls to make: a great many may wait.
        sizes = ((len(one.share.items), one.share.tokens, len(one.share.body)) for one in waiting)
        for run in _runs(sizes, waiting[0].share.origin.limits):
            if group.under_way >= self._max_calls_a_tenant:
                group.waiting = waiting[run.start :]
                break
            group.under_way += 1
            call = asyncio.create_task(self._call(name, group, waiting[run]))
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _ended(self, call: "asyncio.Task[None]") -> None:
        self._calls.discard(call)
        if not call.cancelled() and (error := call.exception()) is not None:
            _log.error("an upstream call failed in a way nobody thought of", exc_info=error)

    async def _call(self, name: bytes, group: _Group, batch: list[_Waiting]) -> None:
        """Make one call; every exit answers every share."""
        shares = [waiting.share for waiting in batch]
        now_s = time.perf_counter()
        for waiting in batch:
            self._metrics.stage_seconds["wait"].observe(now_s - waiting.since_s)
        outcomes: Sequence[Outcome | ProxyError] = [ProxyError("The call was abandoned.")] * len(batch)
        try:
            outcomes = await self._outcomes(shares)
        finally:
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if not waiting.answered.done():
                    waiting.answered.set_result(outcome)
            group.under_way -= 1
            if group.waiting:
                self._send_waiting(name, group)
            elif not group.under_way:
                self._groups.pop(name, None)

    async def _outcomes(self, shares: list[Share]) -> Sequence[Outcome | ProxyError]:
        first = shares[0]
        merged = len(shares) > 1
        items = [item for share in shares for item in share.items]
        body = wire.reduced_body(first.asked, items) if merged else first.body
        if merged:
            first = replace(first, headers=_in_common([share.headers for share in shares]))
        self._metrics.upstream_merged_requests.observe(len(shares))
        try:
            with self._calls_for(shares) as calls:
                answer, origin = await self._embed(first, body, len(items), calls)
                if answer.status == _OK:
                    parsed = _read(first, origin, answer, len(items))
                    self._metrics.admit_model(first.asked.model)
                    self._metrics.of_model(first.asked.model).bill(parsed.usage["prompt_tokens"])
                    calls.billed(parsed.usage["prompt_tokens"])
                    return list(_shared_out(shares, items, parsed, answer, by_origin=origin is first.origin))
            refused = Refused(answer.impersonal() if merged else answer, body)
            failure: Outcome = refused
            is_one_callers = refused.blames_input
        except ProxyError as error:
            return [error] * len(shares)
        except InvalidAnswer as invalid:
            self._metrics.upstream_rejected.labels(invalid.reason).inc()
            failure, is_one_callers = Unusable(answer, body, invalid.reason), True
        if merged and is_one_callers:
            alone = await asyncio.gather(*(self._outcomes([share]) for share in shares))
            return [outcome for (outcome,) in alone]
        return [failure] * len(shares)


def _read(share: Share, origin: Origin, answer: Answer, items: int) -> reply.EmbeddingAnswer:
    """What ``origin`` answered to a call for ``items`` items of shares like this one. Raises `InvalidAnswer`."""
    asked, provider = share.asked, origin.provider
    for name, pattern in provider.disowned_by.items():
        if fnmatchcase(answer.headers.get(name, ""), pattern):
            raise InvalidAnswer("disowned")
    parsed = reply.parse_answer(answer.plain_body(), provider, items=items, length=asked.length, packed=asked.packed)
    # A server of a single model may answer to any name, and to none.
    if wire.is_one_of(parsed.model, provider.multi_vector_models):
        raise InvalidAnswer("multi-vector")
    if origin is share.origin:
        origin.remember(asked.model, parsed.model)
        return parsed if parsed.model else replace(parsed, model=asked.model or "")
    # By the operator's word it is the same model, which in one answer and in the store has one name: the origin's own,
    # or until that is known none.
    return replace(parsed, model=share.origin.names.get(asked.model, ""))


def is_out_of_order(answer: Answer) -> bool:
    """Whether it says something of the upstream, and nothing of the request."""
    status = answer.status if answer.status != _OK else reply.error_status(answer.body)
    return status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR


def _for_body(share: Share, body: bytes) -> CIMultiDict[str]:
    """The headers to send with ``body``. An idempotency key stands for the client's own body: an upstream that keeps
    its word would answer another one with what it answered the first time. So does a request's id: of two requests
    under way with the same one vLLM's scheduler dies."""
    if body == share.asked.body:
        return share.headers
    return _without(share.headers, "Idempotency-Key", "X-Idempotency-Key", "X-Request-Id")


def _in_common(given: list[CIMultiDict[str]]) -> CIMultiDict[str]:
    """What several requests say alike, and who is speaking: what only one of them says (a condition, a deadline, a
    cookie) must not decide how the others fare."""
    first, *others = given
    return CIMultiDict(
        (name, value)
        for name, value in first.items()
        if name.lower() in _SPEAKER or all(value in other.getall(name, ()) for other in others)
    )


def _without(headers: CIMultiDict[str], *names: str) -> CIMultiDict[str]:
    copy = headers.copy()
    for name in names:
        copy.popall(name, None)
    return copy


def _shared_out(
    shares: list[Share], items: list[Any], parsed: reply.EmbeddingAnswer, answer: Answer, *, by_origin: bool
) -> Iterator[Delivered]:
    """Each share's part of one answer."""
    total = parsed.usage["prompt_tokens"]
    tokens = share_tokens(total, [weight(shares[0].asked.kind, item) for item in items])
    ends = accumulate((len(share.items) for share in shares), initial=0)
    for start, end in pairwise(ends):
        billed = sum(tokens[start:end])
        usage = parsed.usage if len(shares) == 1 else {"prompt_tokens": billed, "total_tokens": billed}
        yield Delivered(
            vectors=parsed.vectors[start:end],
            tokens=tokens[start:end],
            model=parsed.model,
            usage=usage,
            told=parsed.told,
            headers=answer.headers,
            is_exact=len(shares) == 1,
            by_origin=by_origin,
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
