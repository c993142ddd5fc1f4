"""Requests that wait for an upstream's rate limit: what it refused is sent again when the pacer allows it.

A request is in a call, or held in a lane's queue, or rests in the lane. One that was refused alone rests until another
call of its lane ends. If the upstream accepts others and refuses it again, the request itself is the cause. It then
waits longer each time, and delays no other.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from operator import add, gt
from typing import NamedTuple

from proxy.errors import Abandoned, Overloaded, Oversized, ProxyError, RateLimited
from proxy.fetch.client_wait import ClientWait
from proxy.fetch.held_keys import HeldKeys
from proxy.fetch.lane import Lane, LaneCall, Lanes
from proxy.fetch.outcomes import CallFailure, EmbedResult, ErrorResponse, Outcome, rate_limit_refusal
from proxy.fetch.request import ClientRequest, FetchRequest
from proxy.fetch.waiting import Ended, Waiting, cost_of
from proxy.pacing.quotas import Cost
from proxy.pacing.sent_call import SentCall
from proxy.pacing.stated_quota import NEVER_S
from proxy.protocol.provider import Limits
from proxy.telemetry.metrics import Metrics

_MIN_REST_S, _MAX_REST_S = 1.0, 16.0


class GivenUp(NamedTuple):
    """The refusal for a client whose patience has ended. ``request`` is what was refused, if that is known."""

    refusal: CallFailure
    request: FetchRequest | None


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
        self._refusals, self._gave_up = metrics.rate_limit_refusals, metrics.rate_limit_given_up
        self._wait_seconds = metrics.rate_limit_wait_seconds
        metrics.rate_limited_items.set_function(self._count_items)
        metrics.watch_lanes(lambda: [lane.state for lane in lanes.all()])
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

    def ended(self, batch: Sequence[Waiting], sent: LaneCall, outcomes: Sequence[Outcome | ProxyError]) -> list[Ended]:
        """A call ended. Returns the requests to resolve, with their outcomes; others wait to be sent again."""
        lane, call = sent
        try:
            if len(outcomes) == 1 and type(outcome := outcomes[0]) is EmbedResult:  # the usual case
                self._accepted(lane, call, outcome)
                return [(batch[0], outcome)]
            refusals = [rate_limit_refusal(outcome) for outcome in outcomes]
            if any(refusals):
                return self._refused(batch, sent, outcomes, refusals)
            if isinstance(outcomes[0], ProxyError):
                lane.lost(call)
            else:
                self._accepted(lane, call, outcomes[0])
            return list(zip(batch, outcomes, strict=True))
        except BaseException:
            lane.lost(call)
            raise
        finally:
            if lane.pacer.is_paced or lane.has_waiting:
                self._send_ready(lane)

    def _accepted(self, lane: Lane, call: SentCall, outcome: Outcome) -> None:
        lane.accepted(call, outcome)
        if lane.resting:
            self._wake_resting(lane)

    def _refused(
        self,
        batch: Sequence[Waiting],
        sent: LaneCall,
        outcomes: Sequence[Outcome | ProxyError],
        refusals: Sequence[ErrorResponse | None],
    ) -> list[Ended]:
        """Requests of a call were refused; perhaps not all of them, if its parts were sent alone."""
        lane, call = sent
        refused = {id(refusal.response): refusal for refusal in refusals if refusal is not None}
        self._refusals.labels(batch[0].request.client_request.origin.name).inc(len(refused))
        is_alone = len(batch) == 1
        is_for_itself = is_alone and _is_for_itself(lane, batch[0])
        until_s = lane.refused(call, next(iter(refused.values())), is_alone=is_alone, is_for_itself=is_for_itself)
        ended = []
        for waiting, outcome, refusal in zip(batch, outcomes, refusals, strict=True):
            if refusal is None:
                ended.append((waiting, outcome))
            else:
                _note(waiting, refusal, is_alone=is_alone)
                self._hold(lane, waiting, rests_until_s=until_s if is_for_itself else None)
        return ended

    def hold(self, lane: Lane, batch: Sequence[Waiting]) -> None:
        """Let requests wait in ``lane``."""
        for waiting in batch:
            self._hold(lane, waiting)
        self._send_ready(lane)

    async def wait(self, wait: ClientWait) -> GivenUp | None:
        """Wait until all flights of a client's claim have ended, or its patience has, or it left some of them."""
        claim = wait.claim
        has_joined = len(claim.mine) < len(claim.flights)
        try:
            if has_joined:
                self._keys.follow(wait)
            have_ended, given_up = await claim.wait(), wait.given_up
            is_served = given_up is None or (have_ended and not given_up.is_dropped)
            return None if is_served else self._given_up(given_up)
        finally:
            wait.end()
            if has_joined:
                self._keys.unfollow(wait)
            if wait.held:
                for waiting in list(wait.held):
                    self._drop_unwanted(waiting)

    def stop(self, at_s: float) -> None:
        """The proxy stops: what is still held at ``at_s``, event loop time, is refused then."""
        self._stops_at_s = at_s
        asyncio.get_running_loop().call_at(at_s, self._refuse_all)

    def _refuse_all(self) -> None:
        for lane in self._lanes.all():
            for waiting in lane.held:
                self._release(lane, waiting)
                self._hold(lane, waiting)
            self._send_ready(lane)

    def _count_items(self) -> int:
        return sum(len(waiting.request.keys) for lane in self._lanes.all() for waiting in lane.held)

    def _lane_of(self, waiting: Waiting) -> Lane:
        return self._lanes.of(waiting.request.client_request, self._send_ready)

    def _given_up(self, waiting: Waiting) -> GivenUp:
        lane, request = self._lane_of(waiting), waiting.request
        self._gave_up.labels(request.client_request.origin.name).inc()
        if waiting.refusal is not None:
            return GivenUp(waiting.refusal, request)
        return GivenUp(lane.last_refusal or _stated(lane, waiting), None)

    def _hold(self, lane: Lane, waiting: Waiting, *, rests_until_s: float | None = None) -> None:
        """Let a request wait, unless nobody waits for it. ``rests_until_s``: at least until then, by itself."""
        waiting.call = None
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._stops_at_s:
            waiting.resolve(Overloaded("The proxy is stopping while this request waits for the upstream's rate limit."))
        elif not waiting.request.policy.may_be_held:
            waiting.resolve(waiting.refusal or _stated(lane, waiting))
        elif waiting.refusal is not None and self._is_too_large(waiting.request):
            waiting.resolve(Oversized("The upstream never takes so much at once."))
        elif not self._keys.is_wanted(waiting):
            waiting.resolve(Abandoned("The client has disconnected."))
        else:
            waiting.held_since_s = now_s
            self._put(lane, waiting, rests_until_s)
            self._keys.hold(waiting, max(rests_until_s or 0.0, lane.stated_at_s(cost_of([waiting]))))

    def _put(self, lane: Lane, waiting: Waiting, rests_until_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        if rests_until_s is not None:
            rest_s = min(_MAX_REST_S, _MIN_REST_S * 2 ** min(waiting.refusals_alone - 2, 10))
            at_s = max(rests_until_s, loop.time() + rest_s)
            lane.resting[waiting] = loop.call_at(at_s, self._wake, lane, waiting)
        elif waiting.refusals_alone and lane.queue:
            lane.resting[waiting] = None
        else:
            waiting.ticket = lane.queued(waiting)

    def _wake(self, lane: Lane, waiting: Waiting) -> None:
        del lane.resting[waiting]
        waiting.ticket = lane.queued(waiting)
        self._send_ready(lane)

    def _wake_resting(self, lane: Lane) -> None:
        """Queue what rests until another call has ended."""
        for waiting in [waiting for waiting, timer in lane.resting.items() if timer is None]:
            del lane.resting[waiting]
            waiting.ticket = lane.queued(waiting)

    def _send_ready(self, lane: Lane) -> None:
        """Send what waits in a lane, in order, as far as it may be sent now."""
        if not lane.queue:
            if not lane.resting:  # the usual case
                lane.is_free()
                return
            self._wake_resting(lane)
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
                if self._keys.is_wanted(waiting):
                    batch.append(waiting)
                else:
                    waiting.resolve(Abandoned("The client has disconnected."))
            if batch:
                self._start(batch)
        if lane.has_only_resting:  # no request waits for what was to be the next call
            self._send_ready(lane)
            return
        lane.is_free()

    def _drop_unwanted(self, waiting: Waiting) -> None:
        """A client waits no longer for what is held."""
        if not self._keys.is_wanted(waiting):
            lane = self._lane_of(waiting)
            self._release(lane, waiting)
            waiting.resolve(Abandoned("The client has disconnected."))
            self._send_ready(lane)

    def _release(self, lane: Lane, waiting: Waiting) -> None:
        if waiting.ticket is not None and waiting.ticket.is_valid:
            lane.queue.remove(waiting.ticket)
        if (timer := lane.resting.pop(waiting, None)) is not None:
            timer.cancel()
        self._keys.release(waiting)
        self._wait_seconds.observe(asyncio.get_running_loop().time() - waiting.held_since_s)


class _Room:
    """The room in one call: requests fit until it is as large as it may be, or as may be sent now."""

    def __init__(self, lane: Lane, limits: Limits) -> None:
        self._lane = lane
        self._limits = limits
        self._used = Limits(0, 0, 0)
        self._is_bulk = False

    def takes(self, waiting: Waiting) -> bool:
        if waiting.outcome.done():
            return True  # and is not sent
        grown = Limits(*map(add, self._used, waiting.request.size))
        is_first = not self._used.items
        if is_first:
            self._is_bulk = waiting.is_bulk
        if not is_first and (self._lane.pacer.probes_alone or any(map(gt, grown, self._limits))):
            return False
        if not self._lane.is_ready(Cost(grown.items, grown.tokens, is_bulk=self._is_bulk)):
            return False
        self._used = grown
        return True


def _note(waiting: Waiting, refusal: ErrorResponse, *, is_alone: bool) -> None:
    waiting.refusal = refusal
    if is_alone:
        waiting.refusals_alone += 1
        waiting.refused_alone_at_s = asyncio.get_running_loop().time()
    else:
        waiting.refusals_together += 1


def _is_for_itself(lane: Lane, waiting: Waiting) -> bool:
    """Whether a request that was refused alone is refused again, though another was accepted meanwhile."""
    return waiting.refusals_alone > 0 and lane.has_passed(waiting.refused_alone_at_s)


def _stated(lane: Lane, waiting: Waiting) -> RateLimited:
    left_s = lane.ready_at_s(cost_of([waiting])) - asyncio.get_running_loop().time()
    retry_after_s = max(1, math.ceil(left_s)) if left_s < NEVER_S else 1
    return RateLimited("The upstream's rate limit takes no call now.", retry_after_s=retry_after_s)
