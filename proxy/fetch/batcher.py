"""Merges requests that miss at the same time into few upstream calls."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import repeat
from operator import le

from proxy.errors import ProxyError
from proxy.fetch.client_wait import ClientWait
from proxy.fetch.failover import Failover
from proxy.fetch.group import CallLimits, Group
from proxy.fetch.held import GivenUp, HeldRequests
from proxy.fetch.lane import Lane, LaneCall, Lanes
from proxy.fetch.merge_limits import MergeLimits
from proxy.fetch.merged_call import MergedCalls
from proxy.fetch.outcomes import Outcome
from proxy.fetch.queue_limits import QueueLimits
from proxy.fetch.request import ClientRequest, FetchRequest
from proxy.fetch.retry_budget import RetryBudget
from proxy.fetch.runs import runs_of
from proxy.fetch.slots import Slots
from proxy.fetch.upstream_call import UpstreamCalls
from proxy.fetch.waiting import Ended, Waiting
from proxy.fetch.write_through import WriteThrough
from proxy.protocol.provider import Limits
from proxy.protocol.tokens import estimated_tokens
from proxy.tasks import TaskSet, log_to
from proxy.telemetry.metrics import Metrics
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.router import Origin

_log = logging.getLogger(__name__)

_ABANDONED = "The call was abandoned."


class Batcher:
    """An idle group sends at once, so a lone request does not wait. While a call is under way, later requests gather;
    they are sent together when the call returns, when the window has passed, or when a call is full."""

    def __init__(
        self,
        metrics: Metrics,
        write_through: WriteThrough,
        *,
        window_s: float,
        concurrency: int,
        timeout_s: float,
        max_queued_items: int,
        max_queued_bytes: int,
        max_incoming_bytes: int,
        room: Callable[[], Awaitable[None]],
        lanes: Lanes | None,
    ) -> None:
        """Before a call is sent it waits for ``room``: for memory that holds its response until it is stored. With
        ``lanes``, what an upstream refuses for its rate limit waits, and is sent again.
        """
        self._wait_seconds = metrics.stage_seconds["wait"]
        self._write_through = write_through
        self._window_s = window_s
        slot_seconds = metrics.stage_seconds["slot"]
        slots = Slots(concurrency, timeout_s=timeout_s, waited_s=slot_seconds.observe, room=room)
        self._call_limits = CallLimits(concurrency, slots.max_calls_a_tenant)
        self._queue = QueueLimits(max_items=max_queued_items, max_bytes=max_queued_bytes)
        self._budgets: defaultdict[Origin, RetryBudget] = defaultdict(RetryBudget)
        self._merge_limits = MergeLimits(time.monotonic)
        failover = Failover(slots, metrics)
        self._upstream = UpstreamCalls(failover, metrics, self._budgets, max_incoming_bytes=max_incoming_bytes)
        self._merged = MergedCalls(self._upstream, metrics, self._budgets, self._merge_limits)
        self._held: HeldRequests | None = None
        if lanes is not None:
            self._held = HeldRequests(
                lanes,
                metrics,
                start=lambda batch: self._start(self._group_of(batch[0].request), batch),
                room_for=self._room_for,
                is_too_large=lambda one: len(self.split(one)) > 1,
            )
        self._groups: dict[bytes, Group] = {}
        self._calls = TaskSet(log_to(_log, "an upstream call"))
        metrics.queued_items.set_function(lambda: self._queue.items)
        metrics.queue_limit_items.set(max_queued_items)

    def __repr__(self) -> str:
        held = "" if self._held is None else f", {self._held!r}"
        return f"<Batcher {len(self._groups)} groups, {len(self._calls)} calls, {self._queue.items} items{held}>"

    def split(self, request: FetchRequest) -> list[FetchRequest]:
        """Cut a request into parts that each fit into a call. What is keyed as a whole is not cut."""
        if not request.keys:
            return []
        if request.client_request.spec.is_keyed_whole:
            return [request]
        limits = request.client_request.origin.limits
        if self._held is not None:
            limits = self._held.limits(limits, request.client_request)
        if all(map(le, (len(request.keys), request.tokens, sum(request.weights)), limits)):  # the usual case
            return [request]
        tokens = estimated_tokens(request.client_request.parsed.kind, request.weights)
        sizes = zip(repeat(1), tokens, request.weights, strict=False)
        return [request.part(run) for run in runs_of(sizes, limits)]

    async def submit(self, request: FetchRequest, wait: ClientWait) -> Outcome:
        """The outcome of a request that fits into a call, and whose client's wait is ``wait``. Raises `ProxyError`;
        `Overloaded` if too much waits."""
        self._queue.take(request)
        try:
            self._budgets[request.client_request.origin].requested()
            waiting = Waiting(request, wait, asyncio.get_running_loop().create_future(), time.perf_counter())
            self._enqueue(waiting)
            outcome = await waiting.outcome
        finally:
            self._queue.give_back(request)
        if isinstance(outcome, ProxyError):
            raise outcome.again()
        return outcome

    def takes_retry(self, origin: Origin) -> bool:
        """Whether one more attempt may be made after a failure that may be an outage. It counts as failed until a call
        succeeds."""
        budget = self._budgets[origin]
        if not budget.calls():
            return False
        budget.spend(1)
        return True

    async def send_own_body(self, client_request: ClientRequest) -> tuple[UpstreamResponse, bool]:
        """The response to the client's own body, to be relayed, and whether the origin itself gave it.

        Raises `ProxyError`.
        """
        return await self._upstream.send_own_body(client_request)

    async def wait(self, wait: ClientWait) -> GivenUp | None:
        """Wait for the flights of a client's claim; while a rate limit holds any of them, no longer than the client
        waits."""
        if self._held is None:
            await wait.claim.wait()
            return None
        return await self._held.wait(wait)

    def stop_holding(self, at_s: float) -> None:
        """The proxy stops: what waits for a rate limit at ``at_s``, event loop time, is refused then."""
        if self._held is not None:
            self._held.stop(at_s)

    def abandon(self) -> None:
        """Cancel the calls under way. Their waiters get an error."""
        self._calls.cancel()
        self._upstream.close()

    def _enqueue(self, waiting: Waiting) -> None:
        request = waiting.request
        group = self._group_of(request)
        if group.lane is not None and group.lane.queue:
            self._hold(group, [waiting])
            return
        group.add(waiting)
        if group.name is None:
            self._send_waiting(group)
            return
        if group.is_full(waiting.tenant_name):
            return  # the next call that returns takes it along
        loop = asyncio.get_running_loop()
        if not group.calls:
            if group.timer is None:  # those of the same turn of the event loop go together
                group.timer = loop.call_soon(self._send_waiting, group)
        elif group.items >= self._merge_limit(group.lane, request.client_request).items:
            self._send_waiting(group)
        elif group.timer is None:
            group.timer = loop.call_later(self._window_s, self._send_waiting, group)

    def _group_of(self, request: FetchRequest) -> Group:
        name = request.client_request.group if request.policy.may_merge else None
        group = None if name is None else self._groups.get(name)
        if group is None:
            lane = None if self._held is None else self._held.lane(request.client_request)
            group = Group(name, lane, self._call_limits)
            if name is not None:
                self._groups[name] = group
        return group

    def _hold(self, group: Group, waiting: Sequence[Waiting]) -> None:
        if self._held is not None and group.lane is not None:
            self._held.hold(group.lane, waiting)
        self._forget_if_idle(group)

    def _room_for(self, lane: Lane, waiting: Waiting) -> Limits | None:
        """The limits of the call that begins with a request; None if its group has as many calls as it may have now."""
        client_request = waiting.request.client_request
        group = self._groups.get(client_request.group) if waiting.request.policy.may_merge else None
        if group is not None and group.is_full(waiting.tenant_name):
            return None
        return self._merge_limit(lane, client_request)

    def _merge_limit(self, lane: Lane | None, client_request: ClientRequest) -> Limits:
        limits = client_request.origin.merge_limits
        if lane is not None:
            limits = lane.limits(limits, is_merged=True)
        return limits._replace(
            items=self._merge_limits.items(client_request.origin.name, client_request.parsed.model, limits.items)
        )

    def _send_waiting(self, group: Group) -> None:
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        waiting = group.take_ready()
        if len(waiting) <= 1:  # the usual case
            runs: Iterable[slice] = (slice(0, 1),) if waiting else ()
        else:
            # Measured lazily, and only for as many calls as may start: a great many may wait.
            limits = self._merge_limit(group.lane, waiting[0].request.client_request)
            runs = runs_of((one.request.size for one in waiting), limits)
        for run in runs:
            if group.is_full(waiting[run.start].tenant_name):
                group.put_back(waiting[run.start :])
                if group.has_ready:
                    self._send_waiting(group)
                return
            if group.lane is not None and not group.lane.takes(waiting[run]):
                self._hold(group, waiting[run.start :])
                return
            self._start(group, waiting[run])

    def _start(self, group: Group, batch: Sequence[Waiting]) -> None:
        group.call_began(batch[0].tenant_name)
        sent = None if group.lane is None else group.lane.sent(batch)
        call = self._calls.start(self._call(group, batch, sent))
        for waiting in batch:
            waiting.call = call
        call.add_done_callback(partial(_ended, batch))

    async def _call(self, group: Group, batch: Sequence[Waiting], sent: LaneCall | None) -> None:
        """Make one call. `_ended` resolves the requests that this does not resolve or hold."""
        now_s = time.perf_counter()
        for waiting in batch:
            self._wait_seconds.observe(now_s - waiting.since_s)
        start = self._write_through.call_starts()
        outcomes: Sequence[Outcome | ProxyError] = [ProxyError(_ABANDONED)] * len(batch)
        try:
            outcomes = await self._merged.outcomes([waiting.request for waiting in batch])
        finally:
            group.call_ended(batch[0].tenant_name)
            try:
                ended: Sequence[Ended] = list(zip(batch, outcomes, strict=True))
                if sent is not None and self._held is not None:
                    ended = self._held.ended(batch, sent, outcomes)
            finally:
                if group.waiting:
                    self._send_waiting(group)
                self._forget_if_idle(group)
        await self._write_through.deliver(ended, start)

    def _forget_if_idle(self, group: Group) -> None:
        if group.name is None or group.calls or group.waiting:
            return
        if self._groups.get(group.name) is group:  # not another one that has taken its place
            del self._groups[group.name]


def _ended(batch: Sequence[Waiting], call: "asyncio.Task[None]") -> None:
    """However the call ended, perhaps before its first step: what it had and is not held has an outcome."""
    for waiting in batch:
        if waiting.call is call and not waiting.outcome.done():
            waiting.resolve(ProxyError(_ABANDONED))
