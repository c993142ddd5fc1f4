"""The limits on calls and on items a second that refusals teach (pure).

A refusal that states a wait, in a burst of which something was accepted, may be about a rate or about the calls in
flight: some servers of the latter kind state a wait, too, though they take the next call as soon as another ends. Once
an accepted call has ended, single calls test that: they are sent before the stated wait has passed. If one is refused,
the limit is on a rate. If a few in a row are accepted, it is on the calls in flight.
"""

import math
from dataclasses import dataclass, field

from proxy.pacing.learned_rate import LEAST_BURST_S, LearnedRate
from proxy.pacing.quotas import RESERVED_CALLS, Cost
from proxy.pacing.sent_call import SentCall

# A rate is measured by at least as many accepted calls.
_MIN_MEASURED_CALLS = 4
# A second refusal within this time is no accident.
_REPEATED_S = 10.0
# With this many calls accepted since a refusal the limit was probably raised, and limits grow faster.
CALM_CALLS = 100
# So many accepted tests in a row tell that no rate is the limit.
_TESTS = 3


@dataclass(slots=True)
class LearnedRates:
    calls: LearnedRate = field(default_factory=LearnedRate)
    items: LearnedRate = field(default_factory=LearnedRate)
    cut_at_s: float = -math.inf  # the last refusal that ended a measurement
    _unit: float = 1.0  # items of a large request
    _tests_left: int = 0  # of a stated wait; 0: nothing is to be tested
    _test: SentCall | None = None  # that is in flight
    _has_ended: bool = False  # an accepted call, since the refusal that stated it

    @property
    def is_learned(self) -> bool:
        return self.calls.is_learned

    def ready_at_s(self, cost: Cost) -> float:
        calls = 1 + RESERVED_CALLS if cost.is_bulk else 1
        return max(self.calls.ready_at_s(calls), self.items.ready_at_s(cost.items))

    @property
    def most_merged(self) -> float:
        """Items of a call of several requests. A larger one has to wait for longer, and so does what comes after it."""
        return self.items.per_s / 2

    @property
    def may_test(self) -> bool:
        return self._has_ended and self._tests_left > 0 and self._test is None

    def take(self, call: SentCall, now_s: float, *, is_blocked: bool) -> bool:
        """``call`` is sent. ``is_blocked``: before a stated wait has passed. Returns whether it is a test."""
        is_test = self.may_test and (is_blocked or self.ready_at_s(call.cost) > now_s)
        if is_test:
            self._test = call
        self.calls.take(1, now_s)
        self.items.take(call.cost.items, now_s)
        return is_test

    def ends(self, call: SentCall) -> bool:
        """Whether it was a test."""
        is_test = call is self._test
        if is_test:
            self._test = None
        return is_test

    def explain(self, call: SentCall, now_s: float) -> bool:
        """Whether a refusal of ``call`` may be about a rate that is known, as little was left."""
        return self.is_learned and (self.calls.is_low(1, now_s) or self.items.is_low(call.cost.items, now_s))

    def refused(self, call: SentCall) -> None:
        if self.is_learned and call.at_s >= self.cut_at_s:
            self.calls.give_back(1)
            self.items.give_back(call.cost.items)

    def accepted(self, call: SentCall) -> None:
        cost = call.cost
        if call.at_s >= self.cut_at_s:  # the usual case
            self.calls.accepted += 1
            self.items.accepted += cost.items
        else:
            self.calls.accept_late(1)
            self.items.accept_late(cost.items)
        if cost.items > self._unit * cost.requests:
            self._unit = cost.items / cost.requests
        self._has_ended = True

    def suspect(self) -> None:
        """A refusal that states a wait may be about a rate."""
        self._tests_left, self._has_ended = _TESTS, False

    def accepted_test(self) -> bool:
        """Whether it was the last one that was needed: the limit is on the calls in flight."""
        self._tests_left = max(0, self._tests_left - 1)
        return not self._tests_left

    def learn(self, call: SentCall, now_s: float, *, is_probe: bool, largest: int) -> None:
        """``call`` was refused for a rate; ``largest``: items of an accepted call."""
        self._tests_left = 0
        is_perhaps_too_large = self.is_learned and call.cost.requests == 1 and call.cost.items > largest
        if not (is_probe or is_perhaps_too_large) and self._is_measured(now_s):
            calls, unit = self.calls.accepted, max(self._unit, call.cost.items / call.cost.requests)
            calls_per_s, items_per_s = self.calls.measured(1, now_s), self.items.measured(call.cost.items, now_s)
            if not self.is_learned:
                # Which of the two is the limit can't be told. Each gets what requests of the sizes seen so far need of
                # it, so that merged calls do not get around the limit on calls, nor unmerged ones are too few.
                calls_per_s, items_per_s = max(calls_per_s, items_per_s / unit), max(items_per_s, calls_per_s * unit)
            if self.calls.has_much(1, now_s) and self.items.has_much(unit, now_s):
                self.calls.halve_burst(now_s)
                self.items.halve_burst(now_s)
            else:
                self.calls.learn(calls_per_s, now_s, calls=calls, unit=1)
                self.items.learn(items_per_s, now_s, calls=calls, unit=unit)
        else:
            self.measure_from(now_s)
        self.cut_at_s = now_s

    def spread(self) -> None:
        """Learn rates without bursts."""
        self.calls.burst_s = self.items.burst_s = LEAST_BURST_S

    def measure_from(self, empty_at_s: float) -> None:
        self.calls.measure_from(empty_at_s)
        self.items.measure_from(empty_at_s)

    def grow(self, now_s: float) -> None:
        calm = max(1.0, self.calls.accepted / CALM_CALLS)
        self.calls.grow(calm, now_s, unit=1)
        self.items.grow(calm, now_s, unit=self._unit)

    def forget(self) -> None:
        """A new burst may be another one than before."""
        self.calls, self.items = LearnedRate(), LearnedRate()
        self._tests_left, self._test = 0, None

    def _is_measured(self, now_s: float) -> bool:
        """Whether what was accepted since the last refusal is enough to tell the limit."""
        is_repeated = self.calls.accepted > 0 and now_s - self.cut_at_s < _REPEATED_S
        return self.is_learned or self.calls.accepted >= _MIN_MEASURED_CALLS or is_repeated
