"""One process's metrics. What each of them means is in `proxy.telemetry.definitions`."""

import platform
from collections.abc import Awaitable, Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Gauge, Metric
from prometheus_client.exposition import generate_latest

from proxy import __version__
from proxy.breaker import State
from proxy.labels import BREAKER_STATES, OUTCOMES, RequestOutcome
from proxy.ledger.cause import Cause
from proxy.ledger.ledger import Ledger
from proxy.ledger.row import Row
from proxy.prices import price_of
from proxy.protocol.records import Flaw
from proxy.telemetry import client_definitions, definitions, process_definitions
from proxy.telemetry.budget_gauges import BudgetGauges
from proxy.telemetry.client_counters import ClientCounters
from proxy.telemetry.counters import Counter, CounterChild, Histogram, ReadCounter
from proxy.telemetry.definitions import Definition
from proxy.telemetry.lane_gauges import LaneGauges, LaneState
from proxy.telemetry.model_counters import ModelCounters

STAGES = ("parse", "lookup", "wait", "slot", "upstream", "assemble")
# Models with a label of their own; further ones share `other`. Series are never removed here, and Prometheus keeps them
# for a long time.
_MAX_MODELS, _MAX_LABEL, _OTHER = 50, 128, "other"
_MAX_HEADERS, _MAX_UNCACHED = 16, 200  # likewise
_BREAKER_GAUGE = {state.value: gauge for gauge, state in enumerate(BREAKER_STATES)}

# Reads the metrics of one process, or of several, added up.
Families = Callable[[], Awaitable[Iterable[Metric]]]
# A client's label, the model as it was asked for, and billed tokens.
Billed = Callable[[str | None, str | None, int], None]


def _ignore(client: str | None, model: str | None, tokens: int) -> None:
    pass


class Metrics:
    """One process's metrics. Attributes named ``…_seconds`` are histograms, or dicts of children by label value.

    Only the event loop's thread may use it: counters and histograms have no locks.
    """

    def __init__(self, *, prices: Mapping[str, float] | None = None, ledger: Ledger | None = None) -> None:
        """``prices`` are per million tokens, by patterns of model names; the first that matches applies."""
        self._registry = CollectorRegistry()
        self.ledger = ledger or Ledger(is_on=False)
        self.on_billed: Billed = _ignore
        self._prices = dict(prices or {})
        # /metrics shows them in this order.
        self._add_requests()
        self._add_models()
        self._add_upstream()
        self._add_store()
        self._add_memory()
        self._add_canary()
        self._add_process()

    def _add_requests(self) -> None:
        self._requests = self._counter(definitions.REQUESTS)
        self._request_children: dict[tuple[RequestOutcome, int, str], CounterChild] = {}
        durations = self._histogram(definitions.REQUEST_SECONDS)
        self.request_seconds = {outcome: durations.labels(outcome.value) for outcome in OUTCOMES}
        stages = self._histogram(definitions.STAGE_SECONDS)
        self.stage_seconds = {stage: stages.labels(stage) for stage in STAGES}
        self.bypasses = self._counter(definitions.BYPASSES)
        self.whole_bodies = self._counter(definitions.WHOLE_BODY_REQUESTS)
        self._uncached = self._counter(client_definitions.UNCACHED_REQUESTS)
        self._uncached_labels: set[tuple[str, ...]] = set()
        self._varying_headers = self._counter(definitions.VARYING_HEADER_MISSES)
        self._varying_header_names: set[str] = set()
        self.validations = self._counter(definitions.VALIDATIONS)
        self.requests_in_flight = self._gauge(definitions.REQUESTS_IN_FLIGHT)
        self.held_bytes = self._gauge(definitions.HELD_BYTES)
        self.held_limit_bytes = self._gauge(definitions.HELD_LIMIT_BYTES)

    def _add_models(self) -> None:
        self._items = self._counter(definitions.ITEMS)
        self._tokens = self._counter(definitions.TOKENS)
        self._cost = self._counter(definitions.COST)
        self._other_models = self._model_counters(_OTHER, None)
        self._models: dict[str | None, ModelCounters] = {}
        ClientCounters(self.ledger, self._registry)
        self.budgets = BudgetGauges(self._registry)
        self.budget_refusals = self._counter(client_definitions.BUDGET_REFUSALS)
        self.budget_store_errors = self._counter(client_definitions.BUDGET_STORE_ERRORS)

    def _add_upstream(self) -> None:
        self.upstream_seconds = self._histogram(definitions.UPSTREAM_SECONDS)
        self.upstream_batch_items = self._histogram(definitions.UPSTREAM_BATCH_ITEMS)
        self.upstream_merged_requests = self._histogram(definitions.UPSTREAM_MERGED_REQUESTS)
        self.upstream_responses = self._counter(definitions.UPSTREAM_RESPONSES)
        self.upstream_rejected = self._counter(definitions.UPSTREAM_REJECTED)
        self.upstream_fallbacks = self._counter(definitions.UPSTREAM_FALLBACKS)
        self.queued_items = self._gauge(definitions.QUEUED_ITEMS)
        self.queue_limit_items = self._gauge(definitions.QUEUE_LIMIT_ITEMS)
        self.rate_limited_items = self._gauge(definitions.RATE_LIMITED_ITEMS)
        self.rate_limit_wait_seconds = self._histogram(definitions.RATE_LIMIT_WAIT_SECONDS)
        self.rate_limit_refusals = self._counter(definitions.RATE_LIMIT_REFUSALS)
        self.rate_limit_given_up = self._counter(definitions.RATE_LIMIT_GIVEN_UP)
        self._breakers = self._gauge(definitions.BREAKER_STATE)
        self._lane_gauges = LaneGauges(self.label_of, registry=self._registry)

    def _add_store(self) -> None:
        store = self._histogram(definitions.STORE_SECONDS)
        self.store_seconds = {operation: store.labels(operation) for operation in ("read", "write")}
        self.store_errors = self._counter(definitions.STORE_ERRORS)
        self.store_pending_bytes = self._gauge(definitions.STORE_PENDING_BYTES)
        self.store_unstored_items = self._counter(definitions.STORE_UNSTORED_ITEMS)
        self.store_changes_age = self._gauge(definitions.STORE_CHANGES_AGE)
        self.store_invalid_records = self._counter(definitions.STORE_INVALID_RECORDS)
        # Begin at 0: to Prometheus, a series that begins at 1 has not increased, and alerts must see the first record.
        for flaw in Flaw:
            self.store_invalid_records.labels(flaw.value)
        for circuit in ("store_read", "store_write"):
            self.breaker(circuit, State.CLOSED.value)

    def _add_memory(self) -> None:
        self._memory_bytes = self._gauge(definitions.MEMORY_BYTES)
        self._memory_limit_bytes = self._gauge(definitions.MEMORY_LIMIT_BYTES)
        self._memory_entries = self._gauge(definitions.MEMORY_ENTRIES)
        self.memory_evicted_age = self._histogram(definitions.MEMORY_EVICTED_AGE)
        self.memory_discarded = self._counter(definitions.MEMORY_DISCARDED)

    def _add_canary(self) -> None:
        self.canary_checks = self._counter(definitions.CANARY_CHECKS)
        self.canary_verdict = self._gauge(definitions.CANARY_VERDICT)
        self.canary_distance = self._gauge(definitions.CANARY_DISTANCE)
        self.canary_noise = self._gauge(definitions.CANARY_NOISE)
        self.canary_changed = self._gauge(definitions.CANARY_CHANGED)
        self.canary_epoch = self._gauge(definitions.CANARY_EPOCH)
        self.canary_failures = self._gauge(definitions.CANARY_FAILURES)
        self.canary_measured_at = self._gauge(definitions.CANARY_MEASURED_AT)
        self.canary_tokens = self._counter(definitions.CANARY_TOKENS)

    def _add_process(self) -> None:
        self.loop_lag = self._histogram(definitions.LOOP_LAG)
        self._gauge(definitions.BUILD_INFO).labels(__version__, platform.python_version()).set(1)
        # With --workers, `proxy.admin.aggregate` replaces these by its own.
        self._gauge(process_definitions.WORKERS_RUNNING).set(1)
        self._gauge(process_definitions.WORKERS_CONFIGURED).set(1)
        self._counter(process_definitions.WORKERS_ENDED)
        self._reload_failed = self._gauge(process_definitions.RELOAD_FAILED)
        lost = process_definitions.LOG_LINES_LOST
        self._log_lines_lost = ReadCounter(lost.name, lost.help, registry=self._registry)

    def _counter(self, definition: Definition) -> Counter:
        return Counter(definition.name, definition.help, definition.labels, registry=self._registry)

    def _gauge(self, definition: Definition) -> Gauge:
        return Gauge(definition.name, definition.help, definition.labels, registry=self._registry)

    def _histogram(self, definition: Definition) -> Histogram:
        name, documentation, labels, buckets = definition
        return Histogram(name, documentation, labels, buckets=buckets, registry=self._registry)

    def _model_counters(self, label: str, price: float | None) -> ModelCounters:
        return ModelCounters(
            label, requests=self._requests_child, items=self._items, tokens=self._tokens, cost=self._cost, price=price
        )

    def _requests_child(self, outcome: RequestOutcome, status: int, model: str) -> CounterChild:
        labels = outcome, status, model
        child = self._request_children.get(labels)
        if child is None:
            child = self._request_children[labels] = self._requests.labels(outcome.value, str(status), model)
        return child

    def uncached(self, client: str | None, cause: Cause, user_agent: str) -> None:
        """Count a request that can't be a hit. Clients choose the field and the program."""
        labels = client or "", cause.reason, cause.field, user_agent
        if len(self._uncached_labels) < _MAX_UNCACHED:
            self._uncached_labels.add(labels)
        self._uncached.labels(*(labels if labels in self._uncached_labels else (_OTHER,) * len(labels))).inc()

    def varying_header(self, name: str, misses: int) -> None:
        """Count ``misses`` that each had a new value of the header field ``name``, which the client chooses."""
        if len(self._varying_header_names) < _MAX_HEADERS:
            self._varying_header_names.add(name)
        self._varying_headers.labels(name if name in self._varying_header_names else _OTHER).inc(misses)

    def of_model(self, model: str | None) -> ModelCounters:
        """The counters of ``model``: its own only after `admit_model`, because clients can name any model."""
        return self._models.get(model, self._other_models)

    def row(self, client: str | None, model: str | None) -> Row:
        """The ledger's row of ``client`` and ``model``."""
        counters = self._models.get(model, self._other_models)
        return self.ledger.row(client, counters.label, counters.price)

    def items_of_model(self, model: str | None) -> float:
        """How many items clients got of ``model``; 0 if it has no label of its own."""
        counters = self._models.get(model)
        return 0.0 if counters is None else sum(child.value for child in counters.items.values())

    def bill_client(self, client: str | None, model: str | None, tokens: int) -> None:
        """Charge ``client`` for ``tokens`` that an upstream billed."""
        if tokens:
            self.ledger.admit(client)
        self.row(client, model).billed += tokens
        self.on_billed(self.ledger.label_of(client), model, tokens)

    def label_of(self, model: str | None) -> str | None:
        """``model`` as logs and traces may show it."""
        return model if model is None or model in self._models else _OTHER

    def admit_model(self, model: str | None) -> None:
        """Give ``model`` a label of its own: an upstream has responded 2xx to it, in this process or before.

        A stored item proves that, too, since its key contains the exact name that the client asked for.
        """
        if model is None or model in self._models or len(model) > _MAX_LABEL:
            return
        if len(self._models) < _MAX_MODELS:
            self._models[model] = self._model_counters(model, price_of(model, self._prices))

    def watch_memory(self, *, size_bytes: Callable[[], int], entries: Callable[[], int], limit_bytes: int) -> None:
        """Read the size of the memory tier at each scrape."""
        self._memory_bytes.set_function(size_bytes)
        self._memory_entries.set_function(entries)
        self._memory_limit_bytes.set(limit_bytes)

    def watch_lanes(self, lanes: Callable[[], Iterable[LaneState]]) -> None:
        """Read what is known of rate limits at each scrape."""
        self._lane_gauges.lanes = lanes

    def watch_files(self, files: str, is_outdated: Callable[[], bool]) -> None:
        """Read at each scrape whether files could not be used when they were last read again."""
        self._reload_failed.labels(files).set_function(is_outdated)

    def watch_log(self, lost_lines: Callable[[], int]) -> None:
        """Read at each scrape how many lines of the log were lost."""
        self._log_lines_lost.source = lost_lines

    def breaker(self, circuit: str, state: str) -> None:
        self._breakers.labels(circuit).set(_BREAKER_GAUGE[state])

    def families(self) -> Iterable[Metric]:
        """The current values of all metrics."""
        return self._registry.collect()


def text_of(families: Iterable[Metric]) -> bytes:
    """The Prometheus text format."""
    return generate_latest(_CollectedFamilies(families))


class _CollectedFamilies(CollectorRegistry):
    """Adapts families that are already collected to what `generate_latest` takes."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
