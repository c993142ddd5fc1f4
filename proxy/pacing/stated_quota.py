"""A limit that responses state, between two of them (pure)."""

import math
from dataclasses import dataclass

from proxy.protocol.rate_limits import Quota

NEVER_S = math.inf
# A stated quota without a time of reset is one of a minute.
MINUTE_S = 60.0
_NOTHING = 1e-6  # lacks by rounding alone
# Two resets are one moment if they differ by no more than this: a window, not a bucket.
_SAME_RESET_S, _SAME_RESET_RATIO = 0.05, 0.02


@dataclass(slots=True)
class StatedQuota:
    """One stated quota between two responses."""

    limit: float = math.inf
    level: float = math.inf
    at_s: float = 0.0
    per_s: float = 0.0  # 0: full again at ``resets_at_s``, and not before
    resets_at_s: float = NEVER_S
    window_s: float = 1.0  # about as long as the next window, when this one has ended

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

    def take(self, cost: float, now_s: float) -> None:
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
            is_window = abs(resets_at_s - self.resets_at_s) <= max(_SAME_RESET_S, _SAME_RESET_RATIO * quota.reset_s)
            self.per_s = 0.0 if is_window or quota.reset_s <= 0 else max(0.0, limit - remaining) / quota.reset_s
            self.resets_at_s = resets_at_s
            self.window_s = max(self.window_s, quota.reset_s)
        # What remains is stated in whole numbers, rounded down. What is known better counts.
        level = remaining - in_flight
        if level < own_level < level + 1:
            level = own_level
        self.limit, self.level, self.at_s = limit, level, now_s
