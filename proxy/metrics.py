"""Every metric, with its meaning. Names follow https://prometheus.io/docs/practices/naming/."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

from proxy import __version__

OUTCOMES = ("hit", "partial", "miss", "bypass", "error")
ITEM_RESULTS = ("memory", "store", "duplicate", "joined", "upstream")
# Models that have a label of their own; the rest are `other`. A series is for ever, and costs the Prometheus too.
_MAX_MODELS, _MAX_LABEL, _OTHER = 50, 128, "other"
_BREAKER_STATES = {"closed": 0, "half-open": 1, "open": 2}

# A series each for when a counter was made doubles a scrape and tells nobody anything.
disable_created_metrics()  # type: ignore[no-untyped-call]

# A hit takes tenths of a millisecond, an upstream's slowest answer minutes.
_LATENCY_S = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
_STORE_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_BATCH_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class ModelCounters:
    """What is counted for one model: ``items[result]``, and tokens."""

    def __init__(self, items: Counter, tokens: Counter, model: str) -> None:
        self.items = {result: items.labels(result, model) for result in ITEM_RESULTS}
        self.tokens_billed = tokens.labels("billed", model)
        self.tokens_saved = tokens.labels("saved", model)


class Metrics:
    """One process's metrics. The attributes with an ``s`` are maps from a label's value to a ready child."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._add_requests(self._registry)
        self._add_upstream(self._registry)
        self._add_store(self._registry)
        build = Gauge(
            "embedding_proxy_build_info", "Always 1; the version is in the label.", ["version"], registry=self._registry
        )
        build.labels(__version__).set(1)

    def _add_requests(self, registry: CollectorRegistry) -> None:
        requests = Counter(
            "embedding_proxy_requests",
            "Requests on the embeddings route: hit, no item was asked for upstream; partial, some were; miss, all were;"
            " bypass, relayed unread; error, answered with an error.",
            ["outcome"],
            registry=registry,
        )
        self.requests = {outcome: requests.labels(outcome) for outcome in OUTCOMES}

        durations = Histogram(
            "embedding_proxy_request_duration_seconds",
            "From the last byte of the request's headers to the answer being ready, by outcome.",
            ["outcome"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.request_seconds = {outcome: durations.labels(outcome) for outcome in OUTCOMES}

        items = Counter(
            "embedding_proxy_items",
            "Input items: answered from memory, from the store, as a duplicate within their request; joined to another"
            " request's fetch of the same item; asked of the upstream.",
            ["result", "model"],
            registry=registry,
        )

        self.bypasses = Counter(
            "embedding_proxy_bypasses",
            "Requests on the embeddings route that were relayed unread, by what made their meaning uncertain.",
            ["reason"],
            registry=registry,
        )
        tokens = Counter(
            "embedding_proxy_tokens",
            "Input tokens: billed, as the upstream counted them; saved, what cached and duplicate items once cost.",
            ["kind", "model"],
            registry=registry,
        )
        self._counters_of = partial(ModelCounters, items, tokens)
        self._others = self._counters_of(_OTHER)
        self._models: dict[str | None, ModelCounters] = {}

        self.requests_in_flight = Gauge(
            "embedding_proxy_requests_in_flight", "Requests on the embeddings route under way.", registry=registry
        )
        self.held_bytes = Gauge(
            "embedding_proxy_held_request_bytes", "Request bodies held in memory.", registry=registry
        )

    def _add_upstream(self, registry: CollectorRegistry) -> None:
        self.upstream_seconds = Histogram(
            "embedding_proxy_upstream_duration_seconds",
            "One embeddings call upstream, from sending it to its last byte.",
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.upstream_batch_items = Histogram(
            "embedding_proxy_upstream_batch_items",
            "Items in one embeddings call upstream.",
            buckets=_BATCH_ITEMS,
            registry=registry,
        )
        self.upstream_merged_requests = Histogram(
            "embedding_proxy_upstream_merged_requests",
            "Requests whose items travelled in one embeddings call upstream.",
            buckets=_BATCH_ITEMS,
            registry=registry,
        )
        self.upstream_answers = Counter(
            "embedding_proxy_upstream_answers",
            "Embeddings calls upstream by HTTP status, or unreachable, or timeout.",
            ["status"],
            registry=registry,
        )
        self.upstream_rejected = Counter(
            "embedding_proxy_upstream_rejected",
            "Answers with status 200 that were not stored because they did not check out, by what was wrong.",
            ["reason"],
            registry=registry,
        )

        self.upstream_fallbacks = Counter(
            "embedding_proxy_upstream_fallbacks",
            "Embeddings calls that one upstream could not answer and one declared to serve the same model was asked.",
            ["upstream"],
            registry=registry,
        )
        self.queued_items = Gauge(
            "embedding_proxy_upstream_queued_items",
            "Items that were handed to the batcher and have no answer yet.",
            registry=registry,
        )

    def _add_store(self, registry: CollectorRegistry) -> None:
        store = Histogram(
            "embedding_proxy_store_duration_seconds",
            "One read or write of the store for one request.",
            ["operation"],
            buckets=_STORE_S,
            registry=registry,
        )
        self.store_seconds = {operation: store.labels(operation) for operation in ("read", "write")}
        self.store_errors = Counter(
            "embedding_proxy_store_errors",
            "Reads and writes of the store that failed or ran out of time; they cost hits, not requests.",
            ["operation", "reason"],
            registry=registry,
        )
        self.store_invalid_records = Counter(
            "embedding_proxy_store_invalid_records",
            "Stored values that did not check out and were taken for misses, by what was wrong.",
            ["reason"],
            registry=registry,
        )
        self._breakers = Gauge(
            "embedding_proxy_breaker_state",
            "Circuit breakers, of each direction of the store and of each upstream: 0 closed, 1 half-open, 2 open.",
            ["circuit"],
            registry=registry,
        )
        for circuit in ("store_read", "store_write"):
            self.breaker(circuit, "closed")
        self._memory_bytes = Gauge(
            "embedding_proxy_memory_bytes",
            "Bytes the memory tier holds, its own estimate.",
            registry=registry,
        )
        self._memory_entries = Gauge(
            "embedding_proxy_memory_entries", "Entries the memory tier holds.", registry=registry
        )

    def of_model(self, model: str | None) -> ModelCounters:
        """What counts ``model``, by its own name only once an upstream has answered for it: a client can name any."""
        return self._models.get(model, self._others)

    def admit_model(self, model: str | None) -> None:
        """An upstream has answered 2xx for ``model``."""
        if model is None or model in self._models or len(model) > _MAX_LABEL:
            return
        if len(self._models) < _MAX_MODELS:
            self._models[model] = self._counters_of(model)

    def watch_memory(self, *, size_bytes: Callable[[], int], entries: Callable[[], int]) -> None:
        """Read the memory tier's size when scraped."""
        self._memory_bytes.set_function(size_bytes)
        self._memory_entries.set_function(entries)

    def breaker(self, circuit: str, state: str) -> None:
        self._breakers.labels(circuit).set(_BREAKER_STATES[state])

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
