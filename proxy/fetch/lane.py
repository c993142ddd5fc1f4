"""The lane to one upstream, credential and model: its pacer, and the requests that wait for it."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from proxy.fetch.outcomes import EmbedResult, ErrorResponse, Outcome, without_request
from proxy.fetch.request import ClientRequest, LaneName
from proxy.fetch.waiting import Waiting, cost_of
from proxy.pacing.pacer import Pacer
from proxy.pacing.quotas import Cost
from proxy.pacing.sent_call import SentCall
from proxy.pacing.stated_quota import NEVER_S
from proxy.pacing.wait_queue import Ticket, WaitQueue
from proxy.protocol import rate_limits
from proxy.protocol.provider import Limits
from proxy.telemetry.lane_gauges import LaneState

_MAX_LOOKED_AT = 8
# What is refused so often in calls with others is sent alone from then on.
_MAX_REFUSALS_TOGETHER = 3
_MAX_LABEL = 128  # lanes outlive requests, and a client chooses the model's name
# For so long a refusal is an answer to requests that were not sent.
_RECENT_S = 300.0

LaneCall = tuple["Lane", SentCall]
NewPacer = Callable[[str, str | None], Pacer]


class Lane:
    def __init__(
        self, pacer: Pacer, wake: Callable[["Lane"], object], *, upstream: str = "", model: str | None = None
    ) -> None:
        """``wake`` is called when a call may be sent. ``upstream`` and ``model`` are what metrics call it."""
        self.pacer = pacer
        self._upstream, self._model = upstream, model
        self.queue: WaitQueue[Waiting] = WaitQueue()
        # What was refused alone, until another call is accepted or has been refused as well. Or, with a timer, until it
        # has waited by itself.
        self.resting: dict[Waiting, asyncio.TimerHandle | None] = {}
        self._last_refusal: ErrorResponse | None = None
        self._refused_at_s = -NEVER_S
        self._passed_at_s = -NEVER_S  # when the last of the accepted calls was sent
        self._wake = wake
        self._timer: asyncio.TimerHandle | None = None
        self._clock = asyncio.get_running_loop().time

    def __repr__(self) -> str:
        return f"<Lane, {len(self.queue)} requests wait, {len(self.resting)} rest, {self.pacer!r}>"

    @property
    def is_in_use(self) -> bool:
        return self.has_waiting or self.pacer.has_calls

    @property
    def has_waiting(self) -> bool:
        return bool(self.queue or self.resting)

    @property
    def has_only_resting(self) -> bool:
        """Whether something rests until another call has ended, and there is none."""
        return not (self.queue or self.pacer.has_calls) and None in self.resting.values()

    @property
    def state(self) -> LaneState:
        since_s, calls_per_s = self.pacer.held_since_s, self.pacer.calls_per_s
        held_s = self._clock() - since_s if since_s is not None and (self.queue or self.resting) else 0.0
        return LaneState(self._upstream, self._model, held_s, calls_per_s if math.isfinite(calls_per_s) else None)

    @property
    def held(self) -> list[Waiting]:
        return [*self.queue.values(), *self.resting]

    @property
    def last_refusal(self) -> ErrorResponse | None:
        """The most recent refusal, as every client may see it."""
        return self._last_refusal if self._clock() - self._refused_at_s < _RECENT_S else None

    def limits(self, limits: Limits, *, is_merged: bool = False) -> Limits:
        """``limits`` of a call, or less if the rate limit never takes as much at once, or refused it when merged."""
        if not self.pacer.is_paced:
            return limits
        items, tokens = self.pacer.largest(limits.items, limits.tokens)
        return limits._replace(items=self.pacer.most_merged(items) if is_merged else items, tokens=tokens)

    def ready_at_s(self, cost: Cost) -> float:
        """As of the pacer."""
        return self.pacer.ready_at_s(cost, self._clock())

    def takes(self, batch: Sequence[Waiting]) -> bool:
        """Whether a call may be sent now, and nothing waits."""
        if not self.pacer.is_paced:  # the usual case
            return True
        return not self.queue and self.is_ready(cost_of(batch))

    def is_ready(self, cost: Cost) -> bool:
        now_s = self._clock()
        return self.pacer.ready_at_s(cost, now_s) <= now_s

    def stated_at_s(self, cost: Cost) -> float:
        """When the upstream accepts a call, as it stated, in event loop time; now, if no refusal confirmed that."""
        now_s = self._clock()
        return self.pacer.stated_at_s(cost, now_s) if self.pacer.is_confirmed(now_s) else now_s

    def sent(self, batch: Sequence[Waiting]) -> "LaneCall":
        """A call in flight. It keeps its lane, however many others are called meanwhile."""
        return self, self.pacer.sent(cost_of(batch), self._clock())

    def wake_for(self, cost: Cost) -> None:
        """Wake when a call of ``cost`` may be sent, unless a call in flight ends before."""
        at_s = self.ready_at_s(cost)
        self.pacer.holds(self._clock())
        if self._timer is not None and self._timer.when() == at_s:
            return
        self._cancel_timer()
        if at_s < NEVER_S:
            self._timer = asyncio.get_running_loop().call_at(at_s, self._awake)

    def _awake(self) -> None:
        self._timer = None
        self._wake(self)

    def is_free(self) -> None:
        """Nothing waits."""
        if self.pacer.is_paced:
            self._cancel_timer()
            self.pacer.is_free(self._clock())

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def queued(self, waiting: Waiting) -> Ticket[Waiting]:
        """Put a request into the queue, at the place that it had if it was there before."""
        client_request = waiting.request.client_request
        goes_alone = waiting.refusals_alone or waiting.refusals_together >= _MAX_REFUSALS_TOGETHER
        group = client_request.group if waiting.request.policy.may_merge and not goes_alone else waiting
        if waiting.ticket is not None:
            return self.queue.add_again(waiting.ticket, group=group)
        return self.queue.add(
            waiting,
            group=group,
            urgency=client_request.limit_wait.urgency,
            tenant=client_request.tenant.name,
            items=len(waiting.request.keys),
            now_s=client_request.limit_wait.began_s,
        )

    def has_passed(self, since_s: float) -> bool:
        """Whether a call was accepted that was sent after ``since_s``, event loop time."""
        return self._passed_at_s > since_s

    def accepted(self, call: SentCall, outcome: Outcome) -> None:
        headers = outcome.headers if isinstance(outcome, EmbedResult) else outcome.response.headers
        self._passed_at_s = max(self._passed_at_s, call.at_s)
        self.pacer.accepted(call, rate_limits.of_headers(headers, now_s=time.time()), self._clock())

    def refused(self, call: SentCall, refusal: ErrorResponse, *, is_alone: bool, is_for_itself: bool) -> float:
        """Returns when the upstream takes the call, as it stated, in event loop time; now, if it stated nothing.

        ``is_alone``: it had a single request. ``is_for_itself``: the upstream refused the request itself, not the
        traffic.
        """
        now_s, response = self._clock(), refusal.response
        stated = rate_limits.of_refusal(response.headers, response.error_text, now_s=time.time())
        if stated.retry_after_s is None:
            stated = replace(stated, retry_after_s=refusal.retry_after_s)
        if is_for_itself:
            self.pacer.refused_for_itself(call, now_s)
            return now_s + (stated.retry_after_s or 0.0)
        self._last_refusal, self._refused_at_s = without_request(refusal), now_s
        self.pacer.refused(call, stated, now_s, is_other_next=is_alone and bool(self.queue))
        return now_s

    def lost(self, call: SentCall) -> None:
        """The call has ended, if it has not ended yet, and nothing else is known of it."""
        self.pacer.lost(call, self._clock())


class Lanes:
    """A lane for each upstream, credential and model that was called lately, and for all that are in use."""

    def __init__(self, new_pacer: NewPacer, *, max_lanes: int = 4096) -> None:
        """``new_pacer`` makes the pacer for an upstream and a model, with what the operator knows of their limits."""
        self._new_pacer = new_pacer
        self._max_lanes = max_lanes
        self._lanes: OrderedDict[LaneName, Lane] = OrderedDict()

    def all(self) -> list[Lane]:
        return list(self._lanes.values())

    def of(self, client_request: ClientRequest, wake: Callable[[Lane], object]) -> Lane:
        name = client_request.lane_name
        lane = self._lanes.get(name)
        if lane is not None:
            self._lanes.move_to_end(name)
            return lane
        upstream, model = client_request.origin.name, client_request.parsed.model
        label = model if model is None or len(model) <= _MAX_LABEL else ""
        lane = self._lanes[name] = Lane(self._new_pacer(upstream, model), wake, upstream=upstream, model=label)
        self._evict()
        return lane

    def _evict(self) -> None:
        for _ in range(min(len(self._lanes) - self._max_lanes, _MAX_LOOKED_AT)):
            name, lane = next(iter(self._lanes.items()))
            if lane.is_in_use:
                self._lanes.move_to_end(name)
            else:
                del self._lanes[name]
