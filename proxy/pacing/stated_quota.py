"""A limit that responses state, between two of them (pure)."""

import math
from dataclasses import dataclass

from msgspec import Struct

from proxy.protocol.rate_limits import Quota

NEVER_S = math.inf
# A stated quota without a time of reset is one of a minute.
MINUTE_S = 60.0
_NOTHING = 1e-6  # lacks by rounding alone
# Of a bucket, what this proxy uses in so many seconds is left for others, and no more than a part of it.
_CUSHION_S, _MOST_CUSHION, _USED_S = 0.5, 0.5, 1.0
# Two resets are one moment if they differ by no more than this, or by less than a second if they are whole seconds.
_SAME_RESET_S, _SAME_RESET_RATIO, _ROUNDED_S = 0.05, 0.02, 1.0


class _Statement(Struct, gc=False):
    """What a response stated, and how fast a bucket would refill by that."""

    remaining: float
    refills_per_s: float
    at_s: float
    reset_s: float


@dataclass(slots=True)
class StatedQuota:
    """One stated quota between two responses."""

    limit: float = math.inf
    level: float = math.inf
    at_s: float = 0.0
    per_s: float = 0.0  # 0: full again at ``resets_at_s``, and not before
    resets_at_s: float = NEVER_S
    used_per_s: float = 0.0  # lately
    taken_at_s: float = 0.0
    window_s: float = 1.0  # about as long as the next window, when this one has ended
    is_window: bool = False
    _last: "_Statement | None" = None

    def now(self, now_s: float) -> float:
        if now_s >= self.resets_at_s:
            return self.limit
        return min(self.limit, self.level + self.per_s * (now_s - self.at_s))

    def ready_at_s(self, cost: float, now_s: float) -> float:
        cost = min(cost, self.limit)  # what is larger than the limit goes when all of it is there
        lacking = cost - self.now(now_s)
        if lacking <= _NOTHING:
            return now_s
        refilled_at_s = now_s + lacking / self.per_s if self.per_s else NEVER_S
        return min(refilled_at_s, self.resets_at_s)

    @property
    def cushion(self) -> float:
        """What is left for other clients of the limit, such as replicas of this proxy. It is more the more this one
        uses, so that all come to have equal parts of the limit; and what one takes is not refused to another that does
        not know of it yet."""
        return min(min(self.used_per_s, self.per_s) * _CUSHION_S, self.limit * _MOST_CUSHION)

    def take(self, cost: float, now_s: float) -> None:
        self.used_per_s = self.used_per_s * math.exp((self.taken_at_s - now_s) / _USED_S) + cost / _USED_S
        self.taken_at_s = now_s
        self.level, self.at_s = self.now(now_s) - cost, now_s
        if now_s >= self.resets_at_s:
            self.resets_at_s = now_s + self.window_s

    def state(self, quota: Quota, in_flight: float, now_s: float) -> None:
        """A response stated the quota, while calls of ``in_flight`` may not have been counted in it yet."""
        own_level = self.now(now_s)
        own = self.limit if math.isfinite(self.limit) else 0.0
        limit = quota.limit if quota.limit is not None else max(own, quota.remaining or 0.0)
        remaining = quota.remaining if quota.remaining is not None else self.now(now_s)
        if quota.reset_s is None:
            self.per_s, self.resets_at_s = limit / MINUTE_S, NEVER_S
            if not self.per_s:
                self.resets_at_s = now_s + self.window_s  # nothing is left of an unknown limit
        else:
            resets_at_s = now_s + quota.reset_s
            refills_per_s = max(0.0, limit - remaining) / quota.reset_s if quota.reset_s > 0 else 0.0
            self._judge(_Statement(remaining, refills_per_s, now_s, quota.reset_s))
            self.per_s = 0.0 if self.is_window else refills_per_s
            self.resets_at_s = resets_at_s
            self.window_s = max(self.window_s, quota.reset_s)
        # What remains is stated in whole numbers, rounded down. What is known better counts.
        level = remaining - in_flight
        if level < own_level < level + 1:
            level = own_level
        self.limit, self.level, self.at_s = limit, level, now_s

    def _judge(self, now: "_Statement") -> None:
        """Whether it is a window. What is taken of a bucket moves its reset; if nothing was, both look the same."""
        last = self._last
        if last is None or now.at_s >= last.at_s + last.reset_s or now.remaining > last.remaining:
            self._last = now
            return
        moved_s = now.at_s + now.reset_s - last.at_s - last.reset_s
        error_s = max(_SAME_RESET_S, _SAME_RESET_RATIO * now.reset_s)
        same_s = error_s if now.reset_s % 1 else _ROUNDED_S
        if _moves_s(last, now) > same_s + error_s:
            self._last, self.is_window = now, abs(moved_s) <= same_s


def _moves_s(last: _Statement, now: _Statement) -> float:
    """By how much at least the reset of a bucket has moved. What remains is rounded down."""
    taken = max(0.0, last.remaining - now.remaining - 1)
    if taken and not last.refills_per_s:
        return math.inf
    return now.at_s - last.at_s + (taken / last.refills_per_s if taken else 0.0)
