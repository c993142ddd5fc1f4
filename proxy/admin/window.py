"""Traffic in a period of time, from the counters at its start and end (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from proxy.admin.latency import Latency, latency_of
from proxy.admin.samples import Buckets, Samples
from proxy.labels import FROM_CACHE, OUTCOMES, RequestOutcome
from proxy.telemetry import definitions

_K = TypeVar("_K")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counters at one moment, or their increase between two."""

    items: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, Buckets] = field(default_factory=dict)  # durations of requests, by outcome

    def since(self, earlier: "Counts") -> "Counts":
        return Counts(
            items=_increase(self.items, earlier.items),
            tokens=_increase(self.tokens, earlier.tokens),
            cost=_increase(self.cost, earlier.cost),
            seconds={
                outcome: _increase(buckets, earlier.seconds.get(outcome, {}))
                for outcome, buckets in self.seconds.items()
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Traffic of the last ``seconds``."""

    seconds: float
    requests: dict[str, int]  # by outcome
    request_hit_rate: float | None  # hits / all requests except errors
    items: dict[str, int]  # by result
    item_hit_rate: float | None  # items `FROM_CACHE` / all items
    tokens: dict[str, int]  # billed and saved
    cost: dict[str, float]  # likewise; empty if no model has a price
    latency: dict[str, Latency]  # by outcome


def counts_of(samples: Samples) -> Counts:
    return Counts(
        items=samples.counters(definitions.ITEMS, "result"),
        tokens=samples.counters(definitions.TOKENS, "kind"),
        cost=samples.counters(definitions.COST, "kind"),
        seconds=samples.buckets(definitions.REQUEST_SECONDS, "outcome"),
    )


def window_of(counts: Counts, seconds: float) -> Window:
    latency = {outcome.value: latency_of(counts.seconds.get(outcome.value, {})) for outcome in OUTCOMES}
    requests = {outcome: each.count for outcome, each in latency.items()}
    without_errors = sum(requests.values()) - requests.get(RequestOutcome.ERROR, 0)
    items = integers(counts.items)
    return Window(
        seconds=seconds,
        requests=requests,
        request_hit_rate=_ratio(requests.get(RequestOutcome.HIT, 0), without_errors),
        items=items,
        item_hit_rate=item_hit_rate(items),
        tokens=integers(counts.tokens),
        cost=dict(counts.cost),
        latency=latency,
    )


def item_hit_rate(items: Mapping[str, int]) -> float | None:
    """The ratio of ``items``, which are by result, that came from the cache; None without items."""
    return _ratio(sum(items.get(result, 0) for result in FROM_CACHE), sum(items.values()))


def integers(counts: Mapping[str, float]) -> dict[str, int]:
    return {name: int(value) for name, value in counts.items()}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _increase(now: Mapping[_K, float], then: Mapping[_K, float]) -> dict[_K, float]:
    return {name: value - then.get(name, 0.0) for name, value in now.items()}
