"""A limit a second that no response states, learned from refusals (pure)."""

import math
from dataclasses import dataclass

# A refusal lowers a rate below what was measured, so that an empty bucket can recover, and to no less than a part of
# what it was. It then grows quickly up to shortly below where it was refused, and slowly from there.
_DECREASE, _MOST_DECREASE = 0.95, 0.4
_NEAR, _FAST, _SLOW = 0.97, 0.01, 0.0001
_DOUBT = 0.4  # a rate that was measured by a single call may be too low by far
_ABOVE = 1.05  # what was measured has the pauses after refusals in it
_ADDED = 0.01  # calls a second, each second
# What refusals teach may be wrong: a rate is never below this many calls a second, and no call is paid for longer.
_LEAST_CALLS_PER_S = 1 / 60
_MAX_DEBT_S = 30.0
# A limit beyond what a process can send is none.
_MOST_CALLS_PER_S = 10_000


@dataclass(slots=True)
class LearnedRate:
    """A learned limit a second. ``per_s`` is infinite until a refusal taught one."""

    per_s: float = math.inf
    refused_at: float = math.inf  # the rate at the last refusal
    accepted: float = 0.0  # since the last refusal
    burst: float = 0.0  # so much may leave at once, as long as the rate is a guess
    doubt: float = 0.0  # by how much it grows with each call, as it was measured by few
    _debt: float = 0.0  # what was sent and is not paid for at ``_at_s``
    _at_s: float = 0.0

    @property
    def is_learned(self) -> bool:
        return math.isfinite(self.per_s)

    @property
    def ready_at_s(self) -> float:
        return self._at_s + self._debt / self.per_s

    def take(self, amount: float, now_s: float) -> None:
        self._pay(now_s)
        if self.is_learned:
            self._debt = min(self._debt + amount, self.per_s * _MAX_DEBT_S)

    def guess(self, per_s: float, *, unit: float, burst: float, now_s: float) -> None:
        """``unit`` is the amount of one call. ``burst`` was accepted, and the next call was refused."""
        self.per_s = self.refused_at = max(per_s, unit * _LEAST_CALLS_PER_S)
        self.burst, self._debt, self._at_s = burst, unit, now_s

    def forget(self) -> None:
        """There is no limit that is known."""
        self.per_s = self.refused_at = math.inf
        self.burst = self.doubt = self._debt = 0.0

    def learn(self, measured_s: float, *, calls: float, unit: float, at_least: float = 0.0) -> None:
        """A call was refused, after what was accepted of ``calls`` in ``measured_s``."""
        self.doubt = _DOUBT / (1 + calls) ** 1.5
        self.burst = 0.0
        measured = max(self.accepted / measured_s, at_least)
        if self.is_learned:
            self.refused_at = min(self.per_s, measured * _ABOVE)
            self.per_s = max(min(self.per_s, measured) * _DECREASE, self.per_s * _MOST_DECREASE)
        else:
            self.refused_at = measured
            self.per_s = measured * _DECREASE
        self.per_s = max(self.per_s, unit * _LEAST_CALLS_PER_S)

    def grow(self, calm: float, now_s: float, *, unit: float) -> None:
        """Part of the growth is the same for all, so that replicas under one limit come to have equal parts of it."""
        if not self.is_learned:
            return
        self._pay(now_s)
        fast = _FAST if self.per_s < _NEAR * self.refused_at else _SLOW * calm
        self.per_s *= 1 + max(fast, self.doubt)
        self.per_s += _ADDED * unit / max(1.0, self.per_s / unit)
        if self.per_s > unit * _MOST_CALLS_PER_S:
            self.forget()

    def _pay(self, now_s: float) -> None:
        if self._debt or self.burst:
            self._debt = max(-self.burst, self._debt - (now_s - self._at_s) * self.per_s)
        self._at_s = now_s
