"""Requests that wait for an upstream's rate limit: what it refused is sent again when the pacer allows it."""

import asyncio
from collections.abc import Callable, Sequence
from operator import add, gt
from typing import Any

from proxy.errors import Overloaded, Oversized, ProxyError
from proxy.fetch.held_keys import HeldKeys
from proxy.fetch.lane import Lane, LaneCall, Lanes
from proxy.fetch.outcomes import CallFailure, Outcome, rate_limit_refusal
from proxy.fetch.pacer import Cost
from proxy.fetch.request import ClientRequest, FetchRequest
from proxy.fetch.singleflight import Claim
from proxy.fetch.stated_quota import NEVER_S
from proxy.fetch.wait_queue import Ticket
from proxy.fetch.waiting import Waiting, cost_of
from proxy.protocol.provider import Limits
from proxy.telemetry.metrics import Metrics


class HeldRequests:
    def __init__(
        self,
        lanes: Lanes,
        metrics: Metrics,
        *,
        start: Callable[[Sequence[Waiting]], None],
        room_for: Callable[[Lane, Waiting], Limits | None],
        is_too_large: Callable[[FetchRequest], bool],
    ) -> None:
        """``start`` makes one call; ``room_for`` has the limits of the call that begins with a request, or None if it
        can't be made before another call ends."""
        self._lanes = lanes
        self._refusals = metrics.rate_limit_refusals
        self._wait_seconds = metrics.rate_limit_wait_seconds
        metrics.rate_limited_items.set_function(self._count_items)
        self._start = start
        self._room_for = room_for
        self._is_too_large = is_too_large
        self._stops_at_s = NEVER_S
        self._keys = HeldKeys()

    def __repr__(self) -> str:
        return f"<HeldRequests {self._count_items()} items, {self._keys!r}>"

    def lane(self, client_request: ClientRequest) -> Lane | None:
        """None if the origin has fallbacks, which take what it refuses."""
        if len(client_request.origin.candidates) > 1:
            return None
        return self._lanes.of(client_request, self._send_ready)

    def limits(self, limits: Limits, client_request: ClientRequest) -> Limits:
        """``limits`` of a call, or less if the rate limit never takes as much at once."""
        lane = self.lane(client_request)
        return limits if lane is None else lane.limits(limits)

    def ended(self, batch: Sequence[Waiting], call: LaneCall, outcomes: Sequence[Outcome | ProxyError]) -> None:
        """A call ended. Every request is resolved, or waits to be sent again."""
        refusals = list(map(rate_limit_refusal, outcomes))
        # Parts that were sent alone have outcomes of their own.
        refused = {id(refusal.response): refusal for refusal in refusals if refusal is not None}
        if refused:
            self._refusals.labels(batch[0].request.client_request.origin.name).inc(len(refused))
        try:
            call.ended(outcomes[0], next(iter(refused.values()), None))
            for waiting, outcome, refusal in zip(batch, outcomes, refusals, strict=True):
                if refusal is None:
                    waiting.resolve(outcome)
                else:
                    waiting.refusal = refusal
                    self._refused(call.lane, waiting)
        finally:
            self._send_ready(call.lane)

    def hold(self, lane: Lane, batch: Sequence[Waiting]) -> None:
        """Let requests wait in ``lane``."""
        for waiting in batch:
            self._hold(lane, waiting)
        self._send_ready(lane)

    async def patience(self, client_request: ClientRequest, claim: Claim[Any]) -> CallFailure | None:
        """As `Batcher.patience`. Without a refusal, which the upstream may only have stated, there is more patience."""
        held = await self._keys.wait(client_request, claim)
        if held is None:
            return None
        lane = self._lanes.of(held.request.client_request, self._send_ready)
        return held.refusal or lane.last_refusal

    def stop(self, at_s: float) -> None:
        """The proxy stops: what is still held at ``at_s``, event loop time, is refused then."""
        self._stops_at_s = at_s
        for lane in self._lanes.all():
            for waiting in lane.queue.values():
                self._release(lane, waiting)
                self._hold(lane, waiting)
            self._send_ready(lane)

    def _count_items(self) -> int:
        return sum(len(waiting.request.keys) for lane in self._lanes.all() for waiting in lane.queue.values())

    def _refused(self, lane: Lane, waiting: Waiting) -> None:
        if self._is_too_large(waiting.request):
            waiting.resolve(Oversized("The upstream never takes so much at once."))
        else:
            self._hold(lane, waiting)

    def _hold(self, lane: Lane, waiting: Waiting) -> None:
        """Let a request wait, unless its client waits no longer or not as long as the upstream states."""
        waiting.call = None
        loop = asyncio.get_running_loop()
        until_s = min(waiting.request.client_request.held_until_s, self._stops_at_s)
        if waiting.is_abandoned:
            waiting.abandon()
        elif until_s <= max(loop.time(), lane.stated_at_s(cost_of([waiting]))):
            self._end(lane, waiting)
        else:
            self._keys.hold(waiting, loop.time())
            waiting.held_since_s = loop.time()
            waiting.give_up = loop.call_at(until_s, self._give_up, lane, waiting)
            waiting.ticket = _queued(lane, waiting)

    def _give_up(self, lane: Lane, waiting: Waiting) -> None:
        """The client's patience has ended, or the proxy stops."""
        self._release(lane, waiting)
        self._end(lane, waiting)
        self._send_ready(lane)

    def _end(self, lane: Lane, waiting: Waiting) -> None:
        refusal = waiting.refusal or lane.last_refusal
        if self._stops_at_s < waiting.request.client_request.held_until_s:
            waiting.resolve(Overloaded("The proxy is stopping while this request waits for the upstream's rate limit."))
        elif refusal is not None:
            waiting.resolve(refusal)
        else:  # the upstream stated that it would refuse, and has not refused yet
            self._start([waiting])

    def _send_ready(self, lane: Lane) -> None:
        """Send what waits in a lane, in order, as far as it may be sent now."""
        now_s = asyncio.get_running_loop().time()
        while (first := lane.queue.first(now_s)) is not None:
            limits = self._room_for(lane, first)
            if limits is None:
                return  # the end of a call comes back
            taken = lane.queue.take(now_s, _Room(lane, limits).takes)
            if not taken:
                lane.wake_for(cost_of([first]))
                return
            batch = []
            for waiting in taken:
                self._release(lane, waiting)
                if waiting.is_abandoned:
                    waiting.abandon()
                else:
                    batch.append(waiting)
            if batch:
                self._start(batch)
        lane.is_free()

    def _release(self, lane: Lane, waiting: Waiting) -> None:
        now_s = asyncio.get_running_loop().time()
        if waiting.ticket is not None and waiting.ticket.is_valid:
            lane.queue.remove(waiting.ticket)
        if waiting.give_up is not None:
            waiting.give_up.cancel()
            waiting.give_up = None
        self._keys.release(waiting, now_s)
        self._wait_seconds.observe(now_s - waiting.held_since_s)


class _Room:
    """The room in one call: requests fit until it is as large as it may be, or as may be sent now."""

    def __init__(self, lane: Lane, limits: Limits) -> None:
        self._lane = lane
        self._limits = limits
        self._used = Limits(0, 0, 0)

    def takes(self, waiting: Waiting) -> bool:
        if waiting.is_abandoned:
            return True  # and is not sent
        grown = Limits(*map(add, self._used, waiting.request.size))
        is_first = not self._used.items
        if not is_first and any(map(gt, grown, self._limits)):
            return False
        if not self._lane.is_ready(Cost(grown.items, grown.tokens)):
            return False
        self._used = grown
        return True


def _queued(lane: Lane, waiting: Waiting) -> Ticket[Waiting]:
    if waiting.ticket is not None:
        return lane.queue.add_again(waiting.ticket)
    client_request = waiting.request.client_request
    return lane.queue.add(
        waiting,
        group=client_request.group if waiting.request.policy.may_merge else waiting,
        urgency=client_request.urgency,
        tenant=client_request.tenant.name,
        items=len(waiting.request.keys),
        now_s=client_request.began_s,
    )
