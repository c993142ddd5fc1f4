"""A limit a second that no response states, learned from refusals (pure)."""

import math
from dataclasses import dataclass

# What a limit is presumed to take at once, in seconds of its rate. Refusals may teach that it is less. It then grows by
# this factor with each accepted call, since another client of the same limit may have taken the rest.
BURST_S, LEAST_BURST_S, _BURST_GROWTH = 1.0, 0.01, 1.005
# A refusal lowers a rate below what was measured, so that an empty bucket can recover, and to no less than a part of
# what it was. It then grows quickly up to shortly below where it was refused, and slowly from there.
_DECREASE, _MOST_DECREASE = 0.95, 0.6
_NEAR, _FAST, _SLOW = 0.97, 0.01, 0.0001
# A rate that was measured by few calls may be too low by far, so it grows by more, and by less with each call.
_DOUBT, _DOUBT_DECAY = 0.4, 0.95
_ADDED = 0.01  # calls a second, each second
# What refusals teach may be wrong: a rate is never below this many calls a second, and no call waits longer for it.
_LEAST_CALLS_PER_S = 1 / 60
_MAX_WAIT_S = 30.0
_MIN_MEASURED_S = 0.01
# A limit beyond what a process can send is none.
_MOST_CALLS_PER_S = 10_000
_LOW = 3.0  # calls are not many
_FULL = 0.99  # of a bucket; the rest is lost by rounding


@dataclass(slots=True)
class LearnedRate:
    """A token bucket. ``per_s`` is infinite until a refusal taught one.

    The rate is measured from when the bucket was empty, at a refusal or a burst before it was full, until the next
    refusal. What is in flight then counts once it is accepted, as much of it may be refused.
    """

    per_s: float = math.inf
    refused_at: float = math.inf  # the rate at the last refusal
    doubt: float = 0.0  # by this part it grows with the next call, as it was measured by few
    burst_s: float = BURST_S  # so many seconds of the rate may leave at once
    _level: float = 0.0  # what is left in the bucket at ``_at_s``
    _at_s: float = 0.0
    accepted: float = 0.0  # since the bucket was empty
    _empty_at_s: float = -math.inf
    _measured_s: float = math.inf  # the time of the last measurement
    _most_per_s: float = 0.0  # that it may still turn out to have shown

    @property
    def is_learned(self) -> bool:
        return math.isfinite(self.per_s)

    @property
    def burst(self) -> float:
        return self.per_s * self.burst_s

    def ready_at_s(self, amount: float) -> float:
        """From when on so much may leave. What is larger than a burst leaves when all of it is there."""
        if not self.is_learned:
            return self._at_s
        return self._at_s + min(_MAX_WAIT_S, (min(amount, self.burst) - self._level) / self.per_s)

    def take(self, amount: float, now_s: float) -> None:
        if self.is_learned:
            self._refill(now_s)
            if self._level >= _FULL * self.burst >= _LOW * amount:  # what came before it was full was perhaps lost
                self.measure_from(now_s - self.burst_s)
            self._level -= amount

    def give_back(self, amount: float) -> None:
        """A call that was to take it was refused."""
        self._level += amount

    def measure_from(self, empty_at_s: float) -> None:
        self.accepted, self._empty_at_s, self._most_per_s = 0.0, empty_at_s, 0.0

    def measured(self, amount: float, now_s: float) -> float:
        """What was accepted a second until ``amount`` was refused. Between nothing and all of that was left."""
        return (self.accepted + amount / 2) / self._time_s(now_s)

    def accept_late(self, amount: float) -> None:
        """A call was accepted that had been sent before the last refusal: more was there than was measured."""
        self.per_s = max(self.per_s, min(self.per_s + _DECREASE * amount / self._measured_s, self._most_per_s))

    def is_low(self, amount: float, now_s: float) -> bool:
        """Whether not much more than ``amount`` is left."""
        self._refill(now_s)
        return self._level < _LOW * amount

    def forget(self) -> None:
        """There is no limit that is known."""
        self.per_s = self.refused_at = math.inf
        self.doubt = self._level = 0.0

    def has_much(self, amount: float, now_s: float) -> bool:
        """Whether most of a burst is left, and several times ``amount``."""
        return self.is_learned and not self.is_low(amount, now_s) and self._level > self.burst / 2

    def halve_burst(self, now_s: float) -> None:
        self.burst_s = max(LEAST_BURST_S, self.burst_s / 2)
        self._level, self._at_s = 0.0, now_s
        self.measure_from(now_s)

    def learn(self, measured: float, now_s: float, *, calls: float, unit: float) -> None:
        """A call was refused after ``calls`` were accepted, and so much a second was ``measured``."""
        self._measured_s, most_per_s = self._time_s(now_s), self.per_s * _DECREASE
        self.doubt = _DOUBT / (1 + max(1.0, calls)) ** 3
        if self.is_learned:
            if not self.has_much(unit, now_s):
                self.refused_at = min(self.per_s, measured)
            self.per_s = max(min(self.per_s, measured) * _DECREASE, self.per_s * _MOST_DECREASE)
        else:
            self.refused_at = measured
            self.per_s = measured * _DECREASE
        self.per_s = max(self.per_s, unit * _LEAST_CALLS_PER_S)
        self._level, self._at_s = 0.0, now_s
        self.measure_from(now_s)
        self._most_per_s = most_per_s

    def grow(self, calm: float, now_s: float, *, unit: float) -> None:
        """Part of the growth is the same for all, so that replicas under one limit come to have equal parts of it."""
        if not self.is_learned:
            return
        self._refill(now_s)
        fast = _FAST if self.per_s < _NEAR * self.refused_at else _SLOW * calm
        self.per_s *= 1 + max(fast, self.doubt)
        self.doubt *= _DOUBT_DECAY
        self.burst_s = min(BURST_S, self.burst_s * _BURST_GROWTH)
        self.per_s += _ADDED * unit / max(1.0, self.per_s / unit)
        if self.per_s > unit * _MOST_CALLS_PER_S:
            self.forget()

    def _time_s(self, now_s: float) -> float:
        return max(_MIN_MEASURED_S if self.is_learned else BURST_S, now_s - self._empty_at_s)

    def _refill(self, now_s: float) -> None:
        self._level = min(self.burst, self._level + (now_s - self._at_s) * self.per_s)
        self._at_s = now_s
