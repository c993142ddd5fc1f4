"""The status that the status page and ``embedding-proxy stats`` show, read from the metrics (pure)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from proxy.admin.canary_status import CanaryStatus, canary_of
from proxy.admin.client_status import BudgetStatus, ClientStatus, UncachedStatus, budgets_of, clients_of, uncached_of
from proxy.admin.history import History, Step
from proxy.admin.latency import Latency, latency_of
from proxy.admin.samples import Buckets, Family, Samples
from proxy.admin.window import Window, counts_of, integers, item_hit_rate, window_of
from proxy.labels import BREAKER_STATES
from proxy.protocol.records import FORGED
from proxy.telemetry import definitions

_MAX_MODELS = 10
NEVER: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    name: str  # chosen by a client: show it as text, never as markup
    items: int
    item_hit_rate: float | None
    tokens: dict[str, int]
    cost: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitStatus:
    model: str  # chosen by a client: show it as text, never as markup
    held_s: float  # how long, without a pause, some request has been waiting for it; 0: none waits
    calls_per_s: float | None  # None: unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamStatus:
    name: str
    base_url: str
    provider: str
    models: tuple[str, ...]  # patterns; none: it serves all models that no other upstream serves
    calls: int = 0
    failed: int = 0  # calls without a 2xx response, but for those that are sent again when a rate limit allows it
    latency: Latency | None = None  # None: it was never called
    rate_limits: tuple[RateLimitStatus, ...] = ()  # that are known


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    url: str  # without secrets
    reads: Latency
    writes: Latency
    errors: int  # without operations that an open circuit breaker rejected
    invalid_records: int
    forged_records: int  # of the invalid ones


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStatus:
    bytes: int
    limit_bytes: int
    entries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    requests_in_flight: int
    queued_items: int
    held_bytes: int
    loop_lag: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The parts of the status that come from the settings."""

    version: str
    base_url: str
    upstreams: tuple[UpstreamStatus, ...]
    store_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    version: str
    base_url: str
    uptime_s: float
    is_draining: bool
    since_start: Window
    recent: Window
    history: list[Step]  # oldest first
    models: list[ModelStatus]  # most items first
    clients: list[ClientStatus]  # most tokens first; none if clients are not told apart
    budgets: list[BudgetStatus]  # the fullest first; those that were used in the present window
    uncached: list[UncachedStatus]  # most requests first
    breakers: dict[str, str]  # state by circuit
    upstreams: list[UpstreamStatus]
    store: StoreStatus
    memory: MemoryStatus
    load: Load
    canary: list[CanaryStatus]  # the models that it checks; none without a canary


def status_of(
    families: Iterable[Family],
    about: About,
    history: History,
    *,
    now_s: float,
    uptime_s: float,
    is_draining: bool,
    last_used_s: Mapping[str, float] = NEVER,
) -> Status:
    """The whole status. ``now_s`` is by the clock of ``history``; ``last_used_s`` is Unix time by client."""
    samples = Samples(families)
    counts = counts_of(samples)
    breakers = samples.gauges(definitions.BREAKER_STATE, "circuit")
    return Status(
        version=about.version,
        base_url=about.base_url,
        uptime_s=uptime_s,
        is_draining=is_draining,
        since_start=window_of(counts, uptime_s),
        recent=history.recent(now_s, counts),
        history=history.steps(now_s, counts),
        models=_models(samples),
        clients=clients_of(samples, last_used_s),
        budgets=budgets_of(samples),
        uncached=uncached_of(samples),
        breakers={circuit: BREAKER_STATES[int(gauge)].value for circuit, gauge in breakers.items()},
        upstreams=_upstreams(samples, about.upstreams),
        store=_store(samples, about.store_url),
        memory=MemoryStatus(
            bytes=samples.gauge(definitions.MEMORY_BYTES),
            limit_bytes=samples.gauge(definitions.MEMORY_LIMIT_BYTES),
            entries=samples.gauge(definitions.MEMORY_ENTRIES),
        ),
        load=Load(
            requests_in_flight=samples.gauge(definitions.REQUESTS_IN_FLIGHT),
            queued_items=samples.gauge(definitions.QUEUED_ITEMS),
            held_bytes=samples.gauge(definitions.HELD_BYTES),
            loop_lag=latency_of(samples.buckets(definitions.LOOP_LAG).get("", {})),
        ),
        canary=canary_of(samples),
    )


def _models(samples: Samples) -> list[ModelStatus]:
    tokens = samples.counters_by(definitions.TOKENS, "model", "kind")
    cost = samples.counters_by(definitions.COST, "model", "kind")
    models = [
        ModelStatus(
            name=name,
            items=int(sum(items.values())),
            item_hit_rate=item_hit_rate(integers(items)),
            tokens=integers(tokens.get(name, {})),
            cost=dict(cost.get(name, {})),
        )
        for name, items in samples.counters_by(definitions.ITEMS, "model", "result").items()
    ]
    used = [model for model in models if model.items]
    return sorted(used, key=lambda model: (-model.items, model.name))[:_MAX_MODELS]


def _upstreams(samples: Samples, upstreams: Iterable[UpstreamStatus]) -> list[UpstreamStatus]:
    """``upstreams`` with their numbers filled in."""
    calls = samples.counters_by(definitions.UPSTREAM_RESPONSES, "upstream", "status")
    buckets = samples.buckets(definitions.UPSTREAM_SECONDS, "upstream")
    held = samples.counters(definitions.RATE_LIMIT_REFUSALS, "upstream")
    limits = _rate_limits(samples)
    return [
        _upstream(
            upstream,
            calls.get(upstream.name, {}),
            held.get(upstream.name, 0.0),
            buckets.get(upstream.name),
            tuple(limits.get(upstream.name, [])[:_MAX_MODELS]),
        )
        for upstream in upstreams
    ]


def _rate_limits(samples: Samples) -> dict[str, list[RateLimitStatus]]:
    """The limits by upstream, first those that make requests wait."""
    calls_per_s = samples.gauges_by(definitions.RATE_LIMIT_CALLS_PER_SECOND, "upstream", "model")
    limits: dict[str, list[RateLimitStatus]] = {}
    held = samples.gauges_by(definitions.RATE_LIMIT_HELD_SECONDS, "upstream", "model")
    for (upstream, model), held_s in sorted(held.items(), key=lambda item: (-item[1], item[0])):
        limit = RateLimitStatus(model=model, held_s=held_s, calls_per_s=calls_per_s.get((upstream, model)))
        limits.setdefault(upstream, []).append(limit)
    return limits


def _upstream(
    upstream: UpstreamStatus,
    calls: Mapping[str, float],
    held: float,
    buckets: Buckets | None,
    rate_limits: tuple[RateLimitStatus, ...],
) -> UpstreamStatus:
    return replace(
        upstream,
        calls=int(sum(calls.values())),
        failed=int(max(0.0, sum(count for status, count in calls.items() if not status.startswith("2")) - held)),
        latency=None if buckets is None else latency_of(buckets),
        rate_limits=rate_limits,
    )


def _store(samples: Samples, url: str) -> StoreStatus:
    durations = samples.buckets(definitions.STORE_SECONDS, "operation")
    errors = samples.counters(definitions.STORE_ERRORS, "reason")
    invalid = samples.counters(definitions.STORE_INVALID_RECORDS, "reason")
    return StoreStatus(
        url=url,
        reads=latency_of(durations.get("read", {})),
        writes=latency_of(durations.get("write", {})),
        errors=int(sum(count for reason, count in errors.items() if reason != "open")),
        invalid_records=int(sum(invalid.values())),
        forged_records=int(sum(invalid.get(flaw.value, 0) for flaw in FORGED)),
    )
