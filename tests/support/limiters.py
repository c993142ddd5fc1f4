"""Rate limiters as upstreams have them, on a clock that is handed in (pure)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a limiter says to a call."""

    is_accepted: bool
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(slots=True)
class Bucket:
    """A token bucket: ``capacity`` at once and ``per_s`` after that."""

    capacity: float
    per_s: float
    level: float = math.nan
    at_s: float = 0.0

    def now(self, now_s: float) -> float:
        level = self.capacity if math.isnan(self.level) else self.level
        return min(self.capacity, level + self.per_s * (now_s - self.at_s))

    def has(self, amount: float, now_s: float) -> bool:
        return self.now(now_s) >= amount - 1e-9

    def take(self, amount: float, now_s: float) -> None:
        self.level, self.at_s = self.now(now_s) - amount, now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        return max(0.0, (min(amount, self.capacity) - self.now(now_s)) / self.per_s)


REFUSAL = orjson.dumps({"error": {"message": "Rate limit reached.", "type": "requests", "code": "rate_limit_exceeded"}})


class Limiter:
    """Takes ``calls_per_s`` and ``items_per_s``, with bursts of ``burst_s`` seconds."""

    def __init__(self, *, calls_per_s: float, items_per_s: float, burst_s: float = 1.0) -> None:
        self.calls = Bucket(calls_per_s * burst_s, calls_per_s)
        self.items = Bucket(items_per_s * burst_s, items_per_s)

    def arrives(self, items: int, now_s: float) -> Verdict:
        if self.is_ready(items, now_s):
            self.calls.take(1, now_s)
            self.items.take(items, now_s)
            return Verdict(is_accepted=True, headers=self.headers(now_s))
        return self.refusal(items, now_s)

    def leaves(self, now_s: float) -> None:
        """A call that was accepted has been answered."""

    def is_ready(self, items: int, now_s: float) -> bool:
        """Whether it would take a call now."""
        return self.calls.has(1, now_s) and self.items.has(items, now_s)

    def headers(self, now_s: float) -> dict[str, str]:
        return {}

    def refusal(self, items: int, now_s: float) -> Verdict:
        return Verdict(is_accepted=False, status=429, headers=self.headers(now_s), body=REFUSAL)

    def wait_s(self, items: int, now_s: float) -> float:
        return max(self.calls.wait_s(1, now_s), self.items.wait_s(items, now_s))


class WithQuotas(Limiter):
    """OpenAI's fields on each response. A text has 10 tokens."""

    def headers(self, now_s: float) -> dict[str, str]:
        fields = {}
        for name, bucket, factor in (("requests", self.calls, 1), ("tokens", self.items, 10)):
            left = max(0.0, bucket.now(now_s))
            fields[f"x-ratelimit-limit-{name}"] = f"{bucket.capacity * factor:.0f}"
            fields[f"x-ratelimit-remaining-{name}"] = f"{math.floor(left) * factor}"
            fields[f"x-ratelimit-reset-{name}"] = f"{round((bucket.capacity - left) / bucket.per_s * 1000)}ms"
        return fields


class WithRetryAfter(Limiter):
    def refusal(self, items: int, now_s: float) -> Verdict:
        headers = {"Retry-After": str(math.ceil(self.wait_s(items, now_s)))}
        return Verdict(is_accepted=False, status=429, headers=headers, body=REFUSAL)


class WithRetryInfo(Limiter):
    """Google's body."""

    def refusal(self, items: int, now_s: float) -> Verdict:
        info = {
            "@type": "type.googleapis.com/google.rpc.RetryInfo",
            "retryDelay": f"{self.wait_s(items, now_s):.3f}s",
        }
        body = orjson.dumps({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": [info]}})
        return Verdict(is_accepted=False, status=429, body=body)


class InSuccess(Limiter):
    """An error inside a 200."""

    def refusal(self, items: int, now_s: float) -> Verdict:
        body = orjson.dumps({"error": {"message": "Rate limit reached.", "code": 429}})
        return Verdict(is_accepted=False, status=200, body=body)


class Halving(Limiter):
    """The limit is half as large from ``at_s`` on."""

    def __init__(self, *, calls_per_s: float, items_per_s: float, at_s: float) -> None:
        super().__init__(calls_per_s=calls_per_s, items_per_s=items_per_s)
        self._at_s = at_s

    def is_ready(self, items: int, now_s: float) -> bool:
        if now_s >= self._at_s:
            self._at_s = math.inf
            for bucket in (self.calls, self.items):
                bucket.take(0, now_s)
                bucket.per_s /= 2
                bucket.capacity /= 2
        return super().is_ready(items, now_s)


class Concurrency(Limiter):
    """At most ``most`` calls at a time."""

    def __init__(self, most: int) -> None:
        super().__init__(calls_per_s=math.inf, items_per_s=math.inf)
        self.most = self._left = most

    def arrives(self, items: int, now_s: float) -> Verdict:
        if not self._left:
            return self.refusal(items, now_s)
        self._left -= 1
        return Verdict(is_accepted=True)

    def leaves(self, now_s: float) -> None:
        self._left += 1


class BusyServer(Concurrency):
    """States a wait, though it takes the next call as soon as another has ended."""

    def refusal(self, items: int, now_s: float) -> Verdict:
        return Verdict(is_accepted=False, status=503, headers={"Retry-After": "1"}, body=REFUSAL)


class Punishing(Limiter):
    """A refusal closes it for ``penalty_s``, and each request meanwhile begins that again."""

    def __init__(self, *, calls_per_s: float, items_per_s: float, penalty_s: float) -> None:
        super().__init__(calls_per_s=calls_per_s, items_per_s=items_per_s)
        self._penalty_s = penalty_s
        self._until_s = 0.0

    def arrives(self, items: int, now_s: float) -> Verdict:
        if now_s < self._until_s:
            self._until_s = now_s + self._penalty_s
            return self.refusal(items, now_s)
        verdict = super().arrives(items, now_s)
        if not verdict.is_accepted:
            self._until_s = now_s + self._penalty_s
        return verdict


class Window(Limiter):
    """A fixed window of ``window_s``, by the fields of the IETF's draft."""

    def __init__(self, *, calls: int, window_s: float) -> None:
        super().__init__(calls_per_s=math.inf, items_per_s=math.inf)
        self.limit, self.window_s = calls, window_s
        self._used, self._began_s = 0, 0.0

    def arrives(self, items: int, now_s: float) -> Verdict:
        if now_s - self._began_s >= self.window_s:
            self._used, self._began_s = 0, now_s - (now_s - self._began_s) % self.window_s
        if self._used >= self.limit:
            return self.refusal(items, now_s)
        self._used += 1
        return Verdict(is_accepted=True, headers=self.headers(now_s))

    def headers(self, now_s: float) -> dict[str, str]:
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.limit - self._used),
            "RateLimit-Reset": str(math.ceil(self._began_s + self.window_s - now_s)),
        }


CALLS_PER_S, ITEMS_PER_S = 10.0, 400.0
LIMITERS: dict[str, Callable[[], Limiter]] = {
    "OpenAI's header fields": lambda: WithQuotas(calls_per_s=CALLS_PER_S, items_per_s=ITEMS_PER_S),
    "Retry-After alone": lambda: WithRetryAfter(calls_per_s=CALLS_PER_S, items_per_s=ITEMS_PER_S),
    "nothing stated": lambda: Limiter(calls_per_s=CALLS_PER_S, items_per_s=ITEMS_PER_S),
    "Google's RetryInfo": lambda: WithRetryInfo(calls_per_s=CALLS_PER_S, items_per_s=ITEMS_PER_S),
    "429 inside a 200": lambda: InSuccess(calls_per_s=CALLS_PER_S, items_per_s=ITEMS_PER_S),
    "halves after 4 s": lambda: Halving(calls_per_s=CALLS_PER_S, items_per_s=ITEMS_PER_S, at_s=4.0),
    "4 calls at a time": lambda: Concurrency(4),
    "punishes retries": lambda: Punishing(calls_per_s=CALLS_PER_S, items_per_s=ITEMS_PER_S, penalty_s=1.0),
    "a fixed window": lambda: Window(calls=20, window_s=2.0),
}
