"""Counters of one model."""

from collections.abc import Callable
from http import HTTPStatus

from proxy.labels import ItemResult, RequestOutcome
from proxy.telemetry.counters import Counter, CounterChild

_MILLION = 1_000_000

# A counter of requests by outcome, status and model.
RequestCounter = Callable[[RequestOutcome, int, str], CounterChild]


class ModelCounters:
    """Counters of one model. ``items`` and ``tokens`` are children by their other label."""

    __slots__ = (
        "_cost_billed",
        "_cost_saved",
        "_hits",
        "_memory",
        "_requests",
        "_saved",
        "items",
        "label",
        "price",
        "tokens",
    )

    def __init__(
        self,
        label: str,
        *,
        requests: RequestCounter,
        items: Counter,
        tokens: Counter,
        cost: Counter,
        price: float | None,
    ) -> None:
        """``price`` is per million tokens; None: cost is not counted."""
        self.label = label
        self.price = price
        self._requests = requests
        self.items = {result: items.labels(result.value, label) for result in ItemResult}
        self._memory = self.items[ItemResult.MEMORY]
        self.tokens = {kind: tokens.labels(kind, label) for kind in ("billed", "saved")}
        self._saved = self.tokens["saved"]
        self._hits: CounterChild | None = None  # a series begins with the first request that it counts
        if price is not None:
            self._cost_billed, self._cost_saved = (cost.labels(kind, label) for kind in ("billed", "saved"))

    def count_request(self, outcome: RequestOutcome, status: int) -> None:
        self._requests(outcome, status, self.label).inc()

    def count_hit(self, *, items: int, distinct: int, from_memory: int, saved: int) -> None:
        """Count a request with status 200 all of whose items were in the cache."""
        if self._hits is None:
            self._hits = self._requests(RequestOutcome.HIT, HTTPStatus.OK.value, self.label)
        self._hits.value += 1
        self._memory.value += from_memory
        if items > from_memory:
            self.items[ItemResult.STORE].value += distinct - from_memory
            self.items[ItemResult.DUPLICATE].value += items - distinct
        self._saved.value += saved
        if self.price is not None:
            self._cost_saved.value += saved * self.price / _MILLION

    def bill(self, tokens: int) -> None:
        self.tokens["billed"].inc(tokens)
        if self.price is not None:
            self._cost_billed.inc(tokens * self.price / _MILLION)

    def save(self, tokens: int) -> None:
        self._saved.inc(tokens)
        if self.price is not None:
            self._cost_saved.inc(tokens * self.price / _MILLION)
