"""The limits on requests and tokens of one lane, by name (pure)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from msgspec import Struct

from proxy.pacing.stated_quota import MINUTE_S, StatedQuota
from proxy.protocol.rate_limits import RateLimits

_MAX_QUOTAS = 16
# So many calls are left for urgent requests, which then need not wait for the next one.
RESERVED_CALLS = 1


class Cost(Struct, frozen=True, gc=False):
    """What a call takes of the limits, besides being one call."""

    items: int
    tokens: int
    requests: int = 1  # that are merged
    is_bulk: bool = False  # it leaves some calls for urgent requests


@dataclass(slots=True)
class Quotas:
    _by_name: dict[str, StatedQuota] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def configure(self, name: str, per_minute: float) -> None:
        """What the operator knows."""
        self._by_name[name] = StatedQuota(limit=per_minute, level=per_minute, per_s=per_minute / MINUTE_S)

    def state(self, stated: RateLimits, in_flight: Callable[[], Iterable[Cost]], now_s: float) -> None:
        """A response stated quotas, while calls ``in_flight`` may not have been counted in them yet."""
        for name, quota in stated.quotas.items():
            taken = sum(_amount(name, cost) for cost in in_flight())
            if name in self._by_name or len(self._by_name) < _MAX_QUOTAS:
                self._by_name.setdefault(name, StatedQuota()).state(quota, taken, now_s)

    def take(self, cost: Cost, now_s: float) -> None:
        for name, quota in self._by_name.items():
            quota.take(_amount(name, cost), now_s)

    def ready_at_s(self, cost: Cost, now_s: float) -> float:
        """From when on a call of ``cost`` is within all of them; minus infinity if there are none."""
        return max((_ready_at_s(name, quota, cost, now_s) for name, quota in self._by_name.items()), default=-math.inf)

    def explain(self, cost: Cost, now_s: float) -> bool:
        """Whether a refusal of ``cost`` is about what is left of one of them, which is a bucket."""
        return any(
            not quota.is_window and quota.ready_at_s(_amount(name, cost), now_s) > now_s
            for name, quota in self._by_name.items()
        )

    def is_empty(self, now_s: float) -> bool:
        """Whether nothing is left of one of them."""
        return any(quota.ready_at_s(1, now_s) > now_s for quota in self._by_name.values())

    @property
    def has_window(self) -> bool:
        """Whether one is full again at a known time, and not before."""
        return any(quota.is_window for quota in self._by_name.values())

    @property
    def calls_per_s(self) -> float:
        """The least rate of requests that they allow; infinity if none is known."""
        rates = (
            quota.per_s or quota.limit / quota.window_s
            for name, quota in self._by_name.items()
            if name.startswith("requests")
        )
        return min(rates, default=math.inf)

    def largest(self, tokens: int) -> int:
        """The tokens of the largest call that can ever be accepted, of at most so many."""
        for name, quota in self._by_name.items():
            if name.startswith("tokens") and quota.limit >= 1:
                tokens = int(min(tokens, quota.limit))
        return tokens


def _ready_at_s(name: str, quota: StatedQuota, cost: Cost, now_s: float) -> float:
    amount: float = _amount(name, cost)
    if cost.is_bulk and quota.per_s:  # a bucket, which loses nothing by that
        amount += quota.cushion + (not name.startswith("tokens")) * RESERVED_CALLS
    return quota.ready_at_s(amount, now_s)


def _amount(quota: str, cost: Cost) -> int:
    return cost.tokens if quota.startswith("tokens") else 1
