"""The limits on calls and on items a second that refusals teach (pure).

A refusal that states a wait, in a burst of which something was accepted, may be about a rate or about the calls in
flight: some servers of the latter kind state a wait, too, though they take the next call as soon as another ends. Then
a rate is guessed, and once an accepted call has ended, single calls test the guess: they are sent before it allows
them, and before the stated wait has passed. One that is refused confirms it. A few in a row that are accepted disprove
it.
"""

import math
from dataclasses import dataclass, field

from proxy.pacing.learned_rate import LearnedRate
from proxy.pacing.sent_call import SentCall

# A rate is measured over at least this time and by at least as many accepted calls: a burst says little about it.
_MIN_MEASURED_S, _MIN_MEASURED_CALLS = 1.0, 4
# A second refusal within this time is no accident.
_REPEATED_S = 10.0
# With this many calls accepted since a refusal the limit was probably raised, and limits grow faster.
CALM_CALLS = 100
# So many accepted tests in a row disprove a guess.
_TESTS = 3


@dataclass(slots=True)
class LearnedRates:
    calls: LearnedRate = field(default_factory=LearnedRate)
    items: LearnedRate = field(default_factory=LearnedRate)
    began_at_s: float = -math.inf  # since when accepted calls are counted
    cut_at_s: float = -math.inf  # the last refusal that ended a measurement
    _tests_left: int = 0  # of the guess; 0: there is none
    _test: SentCall | None = None  # that is in flight
    _has_ended: bool = False  # an accepted call, since the guess

    @property
    def is_learned(self) -> bool:
        return self.calls.is_learned

    @property
    def ready_at_s(self) -> float:
        return max(self.calls.ready_at_s, self.items.ready_at_s)

    @property
    def may_test(self) -> bool:
        return self._has_ended and self._tests_left > 0 and self._test is None

    def take(self, call: SentCall, now_s: float, *, is_blocked: bool) -> bool:
        """``call`` is sent. ``is_blocked``: before a stated wait has passed. Returns whether it is a test."""
        is_test = self.may_test and (is_blocked or self.ready_at_s > now_s)
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

    def accepted(self, items: int) -> None:
        self.calls.accepted += 1
        self.items.accepted += items
        self._has_ended = True

    def guess(self, wait_s: float, now_s: float, *, in_flight: int, unit: int) -> None:
        """What was accepted, and is ``in_flight``, in as long as a refusal states. ``unit``: items of a call."""
        accepted = self.calls.accepted + in_flight
        if accepted:
            per_s = accepted / max(_MIN_MEASURED_S, now_s - self.began_at_s + wait_s)
            self.calls.guess(per_s, unit=1, burst=accepted, now_s=now_s)
            self.items.guess(per_s * unit, unit=unit, burst=accepted * unit, now_s=now_s)
            self._tests_left, self._has_ended = _TESTS, False
        elif self._tests_left:
            self._forget_guess()

    def accepted_test(self) -> bool:
        """Whether it disproves the guess."""
        self._tests_left = max(0, self._tests_left - 1)
        if self._tests_left:
            return False
        self._forget_guess()
        return True

    def refused_test(self) -> None:
        self._tests_left = 0
        if self.calls.burst < _MIN_MEASURED_CALLS:  # so few tell no rate
            self._forget_guess()
        self.calls.burst = self.items.burst = 0.0

    def learn(self, call: SentCall, now_s: float, *, is_probe: bool, largest: int) -> None:
        """``call`` was refused for a rate; ``largest``: items of an accepted call."""
        self._tests_left = 0
        is_perhaps_too_large = self.is_learned and call.cost.items > largest
        if not (is_probe or is_perhaps_too_large) and self._is_measured(now_s):
            measured_s = max(_MIN_MEASURED_S, now_s - self.began_at_s)
            calls, unit = self.calls.accepted, max(call.cost.items, largest)
            self.calls.learn(measured_s, calls=calls, unit=1)
            # Which of the two is the limit can't be told. Items get a limit that calls of the sizes seen so far keep,
            # so that larger ones, by merging, do not get around the limit on calls.
            self.items.learn(measured_s, calls=calls, unit=unit, at_least=self.calls.per_s * unit)
        self.measure_from(now_s)
        self.cut_at_s = now_s

    def measure_from(self, now_s: float) -> None:
        self.began_at_s = now_s
        self.calls.accepted = self.items.accepted = 0.0

    def grow(self, now_s: float, *, largest: int) -> None:
        calm = max(1.0, self.calls.accepted / CALM_CALLS)
        self.calls.grow(calm, now_s, unit=1)
        self.items.grow(calm, now_s, unit=max(1, largest))

    def forget(self) -> None:
        """A new burst may be another one than before."""
        self.calls, self.items = LearnedRate(), LearnedRate()
        self._tests_left, self._test = 0, None

    def _is_measured(self, now_s: float) -> bool:
        """Whether what was accepted since the last refusal is enough to tell the limit."""
        is_repeated = self.calls.accepted > 0 and now_s - self.cut_at_s < _REPEATED_S
        return self.is_learned or self.calls.accepted >= _MIN_MEASURED_CALLS or is_repeated

    def _forget_guess(self) -> None:
        self._tests_left = 0
        self.calls.forget()
        self.items.forget()
