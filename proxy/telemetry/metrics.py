"""Every metric, with its meaning. Names follow https://prometheus.io/docs/practices/naming/."""

import platform
from collections.abc import Awaitable, Callable, Iterable, Mapping
from fnmatch import fnmatchcase

from prometheus_client import CollectorRegistry, Gauge, Metric
from prometheus_client.exposition import generate_latest

from proxy import __version__
from proxy.breaker import State
from proxy.labels import BREAKER_STATES, OUTCOMES, ItemResult
from proxy.protocol.records import Flaw
from proxy.telemetry.counters import Counter, CounterChild, Histogram, HistogramChild

STAGES = ("parse", "lookup", "wait", "slot", "upstream", "assemble")
# Models that have a label of their own; the rest are `other`. A series is for ever, and costs the Prometheus too.
_MAX_MODELS, _MAX_LABEL, _OTHER = 50, 128, "other"
_MAX_HEADERS = 16  # likewise
_BREAKER_GAUGE = {state.value: gauge for gauge, state in enumerate(BREAKER_STATES)}
_MILLION = 1_000_000

# A hit takes tenths of a millisecond, an upstream's slowest answer minutes.
_LATENCY_S = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
_STAGE_S = (0.00001, 0.00005, 0.0002, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
_STORE_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_LAG_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
_AGE_S = (60.0, 600.0, 3600.0, 21600.0, 86400.0, 604800.0, 2592000.0)
_BATCH_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


# One process's metrics as they stand, or those of several added up.
Families = Callable[[], Awaitable[Iterable[Metric]]]


class ModelCounters:
    """What is counted for one model. ``items`` and ``requests`` are ready children by their other labels."""

    __slots__ = ("_label", "_price", "_requests", "cost_billed", "cost_saved", "items", "tokens")

    def __init__(self, metrics: "Metrics", label: str, price: float | None) -> None:
        self._label = label
        self._price = price
        self._requests = metrics.requests_by_label
        self.items: dict[str, CounterChild] = {
            result: metrics.items.labels(result.value, label) for result in ItemResult
        }
        self.tokens = {kind: metrics.tokens.labels(kind, label) for kind in ("billed", "saved")}
        if price is not None:
            self.cost_billed, self.cost_saved = (metrics.cost.labels(kind, label) for kind in ("billed", "saved"))

    def answered(self, outcome: str, status: int) -> None:
        self._requests(outcome, status, self._label).inc()

    def bill(self, tokens: int) -> None:
        self.tokens["billed"].inc(tokens)
        if self._price is not None:
            self.cost_billed.inc(tokens * self._price / _MILLION)

    def save(self, tokens: int) -> None:
        self.tokens["saved"].inc(tokens)
        if self._price is not None:
            self.cost_saved.inc(tokens * self._price / _MILLION)


class Metrics:
    """One process's metrics. The attributes with an ``s`` are maps from a label's value to a ready child."""

    def __init__(self, *, prices: Mapping[str, float] | None = None) -> None:
        """``prices`` are per million tokens, by patterns of model names; the first that fits counts."""
        self._registry = CollectorRegistry()
        self._prices = dict(prices or {})
        self._add_requests(self._registry)
        self._add_models(self._registry)
        self._add_upstream(self._registry)
        self._add_store(self._registry)
        self._add_memory(self._registry)
        self._add_process(self._registry)

    def _add_requests(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "embedding_proxy_requests",
            "Requests on the embeddings route: hit, no item was asked for upstream, except to validate a credential;"
            " partial, some were; miss, all were; bypass, relayed unread, whatever the answer; error, answered with an"
            " error, refused clients included. Status 499: the client left before its answer was complete; 502 may also"
            " be a relayed answer that broke off.",
            ["outcome", "status", "model"],
            registry=registry,
        )
        self._request_children: dict[tuple[str, int, str], CounterChild] = {}
        durations = Histogram(
            "embedding_proxy_request_duration_seconds",
            "From the last byte of the request's headers to the answer being ready, by outcome.",
            ["outcome"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.request_seconds: dict[str, HistogramChild] = {
            outcome: durations.labels(outcome.value) for outcome in OUTCOMES
        }
        stages = Histogram(
            "embedding_proxy_stage_duration_seconds",
            "Where a request's time goes. Of each request that is not relayed unread: parse, reading and identifying"
            " it; lookup, in memory and store; assemble, writing the answer. Of each part of a request that is sent"
            " upstream: wait, while its batch gathers. Of each call upstream: slot, until the number of concurrent"
            " calls permits it; upstream, from sending it to its last byte, if it was answered.",
            ["stage"],
            buckets=_STAGE_S,
            registry=registry,
        )
        self.stage_seconds = {stage: stages.labels(stage) for stage in STAGES}
        self.bypasses = Counter(
            "embedding_proxy_bypasses",
            "Requests on the embeddings route that were relayed unread, by what made their meaning uncertain. Those"
            " that got no answer to relay are errors.",
            ["reason"],
            registry=registry,
        )
        self.whole_bodies = Counter(
            "embedding_proxy_whole_body_requests",
            "Requests that were read and could be keyed as a whole only, not item by item, by what made that so.",
            ["reason"],
            registry=registry,
        )
        self._varying_headers = Counter(
            "embedding_proxy_varying_header_misses",
            "Requests that missed, by a header field of which one credential and model had shown only new values since"
            " their last hit. Counted in steps of 20.",
            ["header"],
            registry=registry,
        )
        self._varying_header_names: set[str] = set()
        self.validations = Counter(
            "embedding_proxy_validations",
            "Questions to an upstream about a credential that was not validated recently, each counted once however"
            " many requests wait for its answer: confirmed, refused, or unknown, when it gave no verdict.",
            ["result"],
            registry=registry,
        )
        self.requests_in_flight = Gauge(
            "embedding_proxy_requests_in_flight", "Requests on the embeddings route under way.", registry=registry
        )
        self.held_bytes = Gauge(
            "embedding_proxy_held_request_bytes", "Request bodies held in memory.", registry=registry
        )
        self.held_limit_bytes = Gauge(
            "embedding_proxy_held_request_limit_bytes",
            "Request bodies that may be held in memory; what comes on top gets 503.",
            registry=registry,
        )

    def _add_models(self, registry: CollectorRegistry) -> None:
        self.items = Counter(
            "embedding_proxy_items",
            "Input items of requests that were not answered with an error: answered from memory, from the store, as a"
            " duplicate within their request; joined to another request's fetch of the same item; asked of the"
            " upstream; bypass, relayed unread.",
            ["result", "model"],
            registry=registry,
        )
        self.tokens = Counter(
            "embedding_proxy_tokens",
            "Input tokens: billed, as the upstream counted them, whether or not a client waited for the answer; saved,"
            " what items cost when they were first asked for, of those that were cached, joined or duplicate. Requests"
            " relayed unread are not included.",
            ["kind", "model"],
            registry=registry,
        )
        self.cost = Counter(
            "embedding_proxy_cost",
            "The same in money, of models that have a price in the configuration and a label of their own; in the"
            " prices' currency.",
            ["kind", "model"],
            registry=registry,
        )
        self._others = ModelCounters(self, _OTHER, None)
        self._models: dict[str | None, ModelCounters] = {}

    def _add_upstream(self, registry: CollectorRegistry) -> None:
        self.upstream_seconds = Histogram(
            "embedding_proxy_upstream_duration_seconds",
            "One embeddings call upstream that was answered, from sending it to its last byte. Requests relayed unread"
            " are not included.",
            ["upstream"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.upstream_batch_items = Histogram(
            "embedding_proxy_upstream_batch_items",
            "Items in one embeddings call upstream, answered or not. Requests relayed unread are not included.",
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
            "Embeddings calls upstream by HTTP status, that of the error where a 200 is one; or unreachable, or"
            " timeout. Requests relayed unread are not included.",
            ["upstream", "status"],
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
            "Embeddings calls to an upstream in place of one that could not answer, and for which it was declared to"
            " serve the same model.",
            ["upstream"],
            registry=registry,
        )
        self.queued_items = Gauge(
            "embedding_proxy_upstream_queued_items",
            "Items that were handed to the batcher and have no answer yet.",
            registry=registry,
        )
        self.queue_limit_items = Gauge(
            "embedding_proxy_upstream_queue_limit_items",
            "Items that the batcher takes; what comes on top gets 503.",
            registry=registry,
        )
        self._breakers = Gauge(
            "embedding_proxy_breaker_state",
            "Circuit breakers, of each direction of the store and of each upstream: 0 closed, 1 half-open, 2 open.",
            ["circuit"],
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
            "Reads and writes of the store that failed, ran out of time, or were not tried (open: because its circuit"
            " breaker is open); they cost hits, not requests.",
            ["operation", "reason"],
            registry=registry,
        )
        self.store_pending_bytes = Gauge(
            "embedding_proxy_store_pending_write_bytes",
            "Records that were handed to the store and are not written yet. Above 64 MiB, calls upstream wait.",
            registry=registry,
        )
        self.store_unstored_items = Counter(
            "embedding_proxy_store_unstored_items",
            "Items that an upstream has answered and that were not written to the store, by reason: those of"
            " embedding_proxy_store_errors_total; busy also means that too many bytes wait for a store that hangs;"
            " stopped, that the process ended first. Until memory evicts them, they are written when they are asked for"
            " again and the store works.",
            ["reason"],
            registry=registry,
        )
        self.store_invalid_records = Counter(
            "embedding_proxy_store_invalid_records",
            "Stored values that were invalid and treated as misses, each counted once until it is replaced. checksum:"
            " damaged. untagged: without a tag, as before a record key was set. other-key: tagged under a record key"
            " that this proxy does not have. tag: names this proxy's record key, but was not tagged with it. key:"
            " copied from another key. The others: of another version or program.",
            ["reason"],
            registry=registry,
        )
        # To Prometheus, a series that begins at 1 has not increased. Alerts must see the first of these.
        for flaw in Flaw:
            self.store_invalid_records.labels(flaw.value)
        for circuit in ("store_read", "store_write"):
            self.breaker(circuit, State.CLOSED.value)

    def _add_memory(self, registry: CollectorRegistry) -> None:
        self._memory_bytes = Gauge(
            "embedding_proxy_memory_bytes", "Bytes the memory tier holds, its own estimate.", registry=registry
        )
        self._memory_limit_bytes = Gauge(
            "embedding_proxy_memory_limit_bytes", "Bytes the memory tier may hold.", registry=registry
        )
        self._memory_entries = Gauge(
            "embedding_proxy_memory_entries", "Entries the memory tier holds.", registry=registry
        )
        self.memory_evicted_age = Histogram(
            "embedding_proxy_memory_evicted_age_seconds",
            "How long ago an entry was stored that leaves the memory tier for want of room.",
            buckets=_AGE_S,
            registry=registry,
        )

    def _add_process(self, registry: CollectorRegistry) -> None:
        self.loop_lag = Histogram(
            "embedding_proxy_event_loop_lag_seconds",
            "How late the event loop comes to a task that is due: what every request waits at each of its steps.",
            buckets=_LAG_S,
            registry=registry,
        )
        build = Gauge(
            "embedding_proxy_build_info",
            "Always 1; the versions are in the labels.",
            ["version", "python"],
            registry=registry,
        )
        build.labels(__version__, platform.python_version()).set(1)

    def requests_by_label(self, outcome: str, status: int, model: str) -> CounterChild:
        name = outcome, status, model
        child = self._request_children.get(name)
        if child is None:
            child = self._request_children[name] = self._requests.labels(str(outcome), str(status), model)
        return child

    def varying_header(self, name: str, misses: int) -> None:
        """So many ``misses`` showed ever new values of the header field ``name``, which is a client's word."""
        if len(self._varying_header_names) < _MAX_HEADERS:
            self._varying_header_names.add(name)
        self._varying_headers.labels(name if name in self._varying_header_names else _OTHER).inc(misses)

    def of_model(self, model: str | None) -> ModelCounters:
        """What counts ``model``, by its own name only once `admit_model` was called: a client can name any."""
        return self._models.get(model, self._others)

    def label_of(self, model: str | None) -> str | None:
        """What may be shown of the model that a client named."""
        return model if model is None or model in self._models else _OTHER

    def admit_model(self, model: str | None) -> None:
        """An upstream has answered 2xx for ``model``, in this process or before: a stored item proves that, too, as the
        exact name that the client asked for is part of its key."""
        if model is None or model in self._models or len(model) > _MAX_LABEL:
            return
        if len(self._models) < _MAX_MODELS:
            price = next((price for pattern, price in self._prices.items() if fnmatchcase(model, pattern)), None)
            self._models[model] = ModelCounters(self, model, price)

    def watch_memory(self, *, size_bytes: Callable[[], int], entries: Callable[[], int], limit_bytes: int) -> None:
        """Read the memory tier's size when scraped."""
        self._memory_bytes.set_function(size_bytes)
        self._memory_entries.set_function(entries)
        self._memory_limit_bytes.set(limit_bytes)

    def breaker(self, circuit: str, state: str) -> None:
        self._breakers.labels(circuit).set(_BREAKER_GAUGE[state])

    def families(self) -> Iterable[Metric]:
        """All of them, as they stand."""
        return self._registry.collect()


def text_of(families: Iterable[Metric]) -> bytes:
    """The Prometheus text format."""
    return generate_latest(_Collected(families))


class _Collected(CollectorRegistry):
    """What `generate_latest` asks of a registry, for families that are there already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
