"""Clients, a pacer and a limiter on one virtual clock: a discrete simulation without sockets or an event loop."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from proxy.pacing.pacer import Pacer
from proxy.pacing.quotas import Cost
from proxy.pacing.sent_call import SentCall
from proxy.pacing.stated_quota import NEVER_S
from proxy.protocol.rate_limits import RateLimits, of_headers, of_refusal
from tests.support.limiters import Limiter, Verdict

_EPOCH_S = 1_700_000_000.0
_REFUSED_AFTER_S = 0.005
_TOKENS_PER_ITEM = 10
_SETTLED_AFTER_S = 1.0  # refusals before this are those of a pacer that knows nothing yet
_TOO_LATE_S = 1000.0
_ITEMS, _CLIENTS = 40, 24  # of a batch; who send batches
_CALL_S, _QUERY_EVERY_S = 0.05, 0.5

_Event = tuple[float, int, Callable[[], None]]


@dataclass(slots=True, order=True)
class _Request:
    is_bulk: bool
    number: int
    items: int = field(compare=False)
    began_s: float = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    batches: int  # that were answered
    accepted_of: list[int]  # calls of each replica
    took_s: float
    calls: int
    late_refusals: int
    query_delays_s: list[float]

    @property
    def late_ratio(self) -> float:
        return self.late_refusals / self.calls


@dataclass(kw_only=True)
class Simulation:
    """Clients send ``batches``, each the next one when it has an answer, by turns to one of ``replicas``; a query of
    one item comes now and then and is sent before any batch."""

    limiter: Limiter
    batches: int = 100
    replicas: int = 1
    call_s: float = _CALL_S
    query_every_s: float = _QUERY_EVERY_S
    _now_s: float = 0.0
    _events: list[_Event] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def run(self) -> Result:
        self._pacers = [Pacer() for _ in range(self.replicas)]
        self._waiting: list[list[_Request]] = [[] for _ in range(self.replicas)]
        self._left, self._done, self._calls, self._late = self.batches, 0, 0, 0
        self._accepted_of = [0] * self.replicas
        self._delays_s: list[float] = []
        for client in range(_CLIENTS):
            self._at(0.0, partial(self._next_batch, client % self.replicas))
        self._at(self.query_every_s / 2, self._query)
        while self._done < self.batches and self._now_s < _TOO_LATE_S:
            self._now_s, _, event = heapq.heappop(self._events)
            event()
        return Result(
            batches=self._done,
            accepted_of=self._accepted_of,
            took_s=self._now_s,
            calls=self._calls,
            late_refusals=self._late,
            query_delays_s=sorted(self._delays_s),
        )

    def _at(self, time_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._numbers), event))

    def _next_batch(self, replica: int) -> None:
        if self._left:
            self._left -= 1
            self._arrive(replica, _ITEMS, is_bulk=True)

    def _query(self) -> None:
        self._arrive(0, 1, is_bulk=False)
        self._at(self._now_s + self.query_every_s, self._query)

    def _arrive(self, replica: int, items: int, *, is_bulk: bool) -> None:
        request = _Request(is_bulk, next(self._numbers), items, self._now_s)
        heapq.heappush(self._waiting[replica], request)
        self._send_waiting(replica)

    def _send_waiting(self, replica: int) -> None:
        pacer, waiting = self._pacers[replica], self._waiting[replica]
        while waiting:
            request = waiting[0]
            cost = Cost(request.items, request.items * _TOKENS_PER_ITEM, is_bulk=request.is_bulk)
            ready_at_s = pacer.ready_at_s(cost, self._now_s)
            if ready_at_s > self._now_s:
                if ready_at_s < NEVER_S:
                    self._at(ready_at_s, partial(self._send_waiting, replica))
                return
            self._calls += 1
            call, request = pacer.sent(cost, self._now_s), heapq.heappop(waiting)
            verdict = self.limiter.arrives(request.items, self._now_s)
            took_s = self.call_s if verdict.is_accepted else _REFUSED_AFTER_S
            self._at(self._now_s + took_s, partial(self._answered, replica, request, call, verdict))

    def _answered(self, replica: int, request: _Request, call: SentCall, verdict: Verdict) -> None:
        pacer, stated = self._pacers[replica], stated_by(verdict, self._now_s)
        if not verdict.is_accepted:
            self._late += call.at_s > _SETTLED_AFTER_S
            pacer.refused(call, stated, self._now_s)
            heapq.heappush(self._waiting[replica], request)
        else:
            self.limiter.leaves(self._now_s)
            pacer.accepted(call, stated, self._now_s)
            self._accepted_of[replica] += 1
            if request.is_bulk:
                self._done += 1
                self._next_batch(replica)
            else:
                self._delays_s.append(self._now_s - request.began_s)
        self._send_waiting(replica)


def stated_by(verdict: Verdict, now_s: float) -> RateLimits:
    now_s += _EPOCH_S
    if verdict.is_accepted:
        return of_headers(verdict.headers, now_s=now_s)
    return of_refusal(verdict.headers, verdict.body, now_s=now_s)
