"""Merges requests that miss at the same time into few upstream calls."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import add, gt, le
from typing import NamedTuple

from proxy.budget import Budget
from proxy.errors import Overloaded, ProxyError
from proxy.fetch.failover import Failover
from proxy.fetch.isolation import MergeLimits, RetryBudget
from proxy.fetch.merged_call import MergedCalls
from proxy.fetch.outcomes import Outcome
from proxy.fetch.request import ClientRequest, FetchRequest
from proxy.fetch.slots import Slots
from proxy.fetch.upstream_call import UpstreamCalls
from proxy.protocol.provider import Limits
from proxy.protocol.tokens import estimated_tokens
from proxy.tasks import TaskSet, log_to
from proxy.telemetry.metrics import Metrics
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.router import Origin

_log = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    request: FetchRequest
    outcome: "asyncio.Future[Outcome | ProxyError]"
    since_s: float


@dataclass(slots=True)
class _Group:
    """Requests that may be merged: they gather in ``waiting`` while calls are under way."""

    waiting: "list[_Waiting]" = field(default_factory=list)
    calls: int = 0  # under way
    timer: asyncio.Handle | None = None  # of sending what waits


class Batcher:
    """An idle group sends at once, so a lone request does not wait. While a call is under way, later requests gather;
    they are sent together when the call returns, when the window has passed, or when a call is full."""

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
        """Before a call is sent it waits for ``room``: for memory that holds its response until it is stored."""
        self._wait_seconds = metrics.stage_seconds["wait"]
        self._window_s = window_s
        slot_seconds = metrics.stage_seconds["slot"]
        slots = Slots(concurrency, timeout_s=timeout_s, waited_s=slot_seconds.observe, room=room)
        self._max_calls_a_tenant = slots.max_calls_a_tenant
        # From `submit` until its outcome is known.
        self._queued_items = _queue(max_queued_items, "items that wait for the upstream")
        self._queued_bytes = _queue(max_queued_bytes, "bytes that wait for the upstream")
        self._budgets: defaultdict[Origin, RetryBudget] = defaultdict(RetryBudget)
        self._merge_limits = MergeLimits(time.monotonic)
        failover = Failover(slots, metrics)
        self._upstream = UpstreamCalls(failover, metrics, self._budgets, max_incoming_bytes=max_incoming_bytes)
        self._merged = MergedCalls(self._upstream, metrics, self._budgets, self._merge_limits)
        self._groups: dict[bytes, _Group] = {}
        self._calls = TaskSet(log_to(_log, "an upstream call"))
        metrics.queued_items.set_function(lambda: self._queued_items.used)
        metrics.queue_limit_items.set(max_queued_items)

    def __repr__(self) -> str:
        return f"<Batcher {len(self._groups)} groups, {len(self._calls)} calls, {self._queued_items.used} items>"

    def split(self, request: FetchRequest) -> list[FetchRequest]:
        """Cut a request into parts that each fit into a call. What is keyed as a whole is not cut."""
        if not request.keys:
            return []
        if request.client_request.spec.is_keyed_whole:
            return [request]
        limits = request.client_request.origin.limits
        if all(map(le, (len(request.keys), request.tokens, sum(request.weights)), limits)):  # the usual case
            return [request]
        kind = request.client_request.parsed.kind
        sizes = [(1, estimated_tokens(kind, weight), weight) for weight in request.weights]
        return [request.part(run) for run in _runs(sizes, limits)]

    async def submit(self, request: FetchRequest) -> Outcome:
        """The outcome of a request that fits into a call. Raises `ProxyError`; `Overloaded` if too much waits."""
        self._take(request)
        try:
            self._budgets[request.client_request.origin].requested()
            waiting = _Waiting(request, asyncio.get_running_loop().create_future(), time.perf_counter())
            self._enqueue(waiting)
            outcome = await waiting.outcome
        finally:
            self._give_back(request)
        if isinstance(outcome, ProxyError):
            raise outcome.again()
        return outcome

    def _take(self, request: FetchRequest) -> None:
        """Count a request while it waits; the parts of a large one count as one. Raises `Overloaded`."""
        client_request = request.client_request
        self._queued_items.take(client_request.tenant, id(client_request), len(request.keys))
        try:
            self._queued_bytes.take(client_request.tenant, id(client_request), len(request.body))
        except Overloaded:
            self._queued_items.give_back(client_request.tenant, id(client_request), len(request.keys))
            raise

    def _give_back(self, request: FetchRequest) -> None:
        client_request = request.client_request
        self._queued_items.give_back(client_request.tenant, id(client_request), len(request.keys))
        self._queued_bytes.give_back(client_request.tenant, id(client_request), len(request.body))

    def takes_retry(self, origin: Origin) -> bool:
        """Whether one more attempt may be made after a failure that may be an outage. It counts as failed until a call
        succeeds."""
        budget = self._budgets[origin]
        if not budget.calls():
            return False
        budget.spend(1)
        return True

    async def replay(self, client_request: ClientRequest) -> tuple[UpstreamResponse, bool]:
        """The response to the client's own body, to be relayed, and whether the origin itself gave it.

        Raises `ProxyError`.
        """
        return await self._upstream.replay(client_request)

    def abandon(self) -> None:
        """Cancel the calls under way. Their waiters get an error."""
        self._calls.cancel()
        self._upstream.close()

    def _enqueue(self, waiting: _Waiting) -> None:
        request = waiting.request
        if not request.policy.may_merge:
            self._start(None, _Group(), [waiting])
            return
        name = request.client_request.group
        group = self._groups.setdefault(name, _Group())
        group.waiting.append(waiting)
        if group.calls >= self._max_calls_a_tenant:
            return  # the next call that returns takes it along
        loop = asyncio.get_running_loop()
        if not group.calls:
            if group.timer is None:  # those of the same turn of the event loop go together
                group.timer = loop.call_soon(self._send_waiting, name, group)
        elif _items(group.waiting) >= self._merge_limit(request.client_request).items:
            self._send_waiting(name, group)
        elif group.timer is None:
            group.timer = loop.call_later(self._window_s, self._send_waiting, name, group)

    def _merge_limit(self, client_request: ClientRequest) -> Limits:
        limits = client_request.origin.merge_limits
        return limits._replace(
            items=self._merge_limits.items(client_request.origin.name, client_request.parsed.model, limits.items)
        )

    def _send_waiting(self, name: bytes, group: _Group) -> None:
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        waiting, group.waiting = group.waiting, []
        if len(waiting) == 1:  # the usual case
            self._start(name, group, waiting)
            return
        # Measured lazily, and only for as many calls as may start: a great many may wait.
        sizes = ((len(one.request.keys), one.request.tokens, len(one.request.body)) for one in waiting)
        for run in _runs(sizes, self._merge_limit(waiting[0].request.client_request)):
            if group.calls >= self._max_calls_a_tenant:
                group.waiting = waiting[run.start :]
                break
            self._start(name, group, waiting[run])

    def _start(self, name: bytes | None, group: _Group, batch: Sequence[_Waiting]) -> None:
        group.calls += 1
        call = self._calls.start(self._call(name, group, batch))
        # However it ends, even if it is cancelled before its first step.
        call.add_done_callback(lambda _: _resolve(batch, [ProxyError("The call was abandoned.")] * len(batch)))

    async def _call(self, name: bytes | None, group: _Group, batch: Sequence[_Waiting]) -> None:
        """Make one call. A ``group`` without name is of a single request."""
        now_s = time.perf_counter()
        for waiting in batch:
            self._wait_seconds.observe(now_s - waiting.since_s)
        try:
            _resolve(batch, await self._merged.outcomes([waiting.request for waiting in batch]))
        finally:
            group.calls -= 1
            if name is not None and group.waiting:
                self._send_waiting(name, group)
            elif name is not None and not group.calls:
                self._groups.pop(name, None)


def _resolve(batch: Sequence[_Waiting], outcomes: Sequence[Outcome | ProxyError]) -> None:
    for waiting, outcome in zip(batch, outcomes, strict=True):
        if not waiting.outcome.done():
            waiting.outcome.set_result(outcome)


def _items(waiting: Sequence[_Waiting]) -> int:
    return sum(len(one.request.keys) for one in waiting)


def _queue(limit: int, what: str) -> Budget:
    # After a start all clients are unverified until their first call returns, so they may use most of the queue.
    return Budget(limit, what, unverified_limit=limit * 7 // 8)


def _runs(sizes: Iterable[tuple[int, ...]], limits: tuple[int, ...]) -> Iterator[slice]:
    """Cut a sequence, in order, into the longest runs whose summed sizes keep within ``limits``.

    An element that alone exceeds them is a run of its own: the upstream decides what to do with it.
    """
    start, end, used = 0, -1, (0,) * len(limits)
    for end, size in enumerate(sizes):
        grown = tuple(map(add, used, size))
        if end > start and any(map(gt, grown, limits)):
            yield slice(start, end)
            start, grown = end, size
        used = grown
    if end >= start:
        yield slice(start, end + 1)
