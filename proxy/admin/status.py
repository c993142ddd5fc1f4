"""What the status page and ``embedding-proxy stats`` show, read from the metrics (pure)."""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol, TypeVar

from proxy.labels import BREAKER_STATES, FROM_CACHE, RequestOutcome
from proxy.protocol.records import FORGED

STEP_S = 10.0  # between two samples of the history
_STEPS = 60
RECENT_S = 300.0
_MAX_MODELS = 10

_K = TypeVar("_K")

# The upper bound of each bucket, and how many observations are not above it.
Buckets = Mapping[float, float]


class Sample(Protocol):
    """One number of the Prometheus data model."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def value(self) -> float: ...


class Family(Protocol):
    @property
    def samples(self) -> Sequence[Sample]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Quantiles are estimates: None without observations, ``limit_s`` where it is that or more."""

    count: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What was counted in the last ``seconds``."""

    seconds: float
    requests: dict[str, int]  # by outcome
    request_hit_rate: float | None  # answered from the cache alone, of all but errors
    items: dict[str, int]  # by result
    item_hit_rate: float | None  # not asked upstream on their own behalf, of all
    tokens: dict[str, int]  # billed and saved
    cost: dict[str, float]  # likewise; empty where no model has a price
    latency: dict[str, Latency]  # by outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A stretch of the history, `STEP_S` long but for the last, which is still growing."""

    seconds: float
    requests: int
    from_cache: int  # items
    asked: int  # items


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    name: str  # a client's choice: show it as text
    items: int
    item_hit_rate: float | None
    tokens: dict[str, int]
    cost: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamStatus:
    name: str
    base_url: str
    provider: str
    models: tuple[str, ...]  # patterns; none: all that nobody else has
    calls: int = 0
    failed: int = 0  # of these, not answered 2xx
    latency: Latency | None = None  # None: it was not called


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    url: str  # without secrets
    reads: Latency
    writes: Latency
    errors: int  # without what the circuit breaker kept from being tried
    invalid_records: int
    forged_records: int  # of these


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
    """What is known without counting."""

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
    history: list[Step]  # the oldest first
    models: list[ModelStatus]  # with the most items first
    breakers: dict[str, str]  # states by circuit
    upstreams: list[UpstreamStatus]
    store: StoreStatus
    memory: MemoryStatus
    load: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counters at one moment, or what they grew by between two."""

    items: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, Buckets] = field(default_factory=dict)  # what requests took, by outcome

    def since(self, earlier: "Counts") -> "Counts":
        return Counts(
            items=_less(self.items, earlier.items),
            tokens=_less(self.tokens, earlier.tokens),
            cost=_less(self.cost, earlier.cost),
            seconds={name: _less(of, earlier.seconds.get(name, {})) for name, of in self.seconds.items()},
        )


class History:
    """Counts of the last ten minutes, sampled every `STEP_S`."""

    def __init__(self, started_s: float) -> None:
        self._samples = deque([(started_s, Counts())], maxlen=_STEPS + 1)
        self._steps: deque[Step] = deque(maxlen=_STEPS)

    def note(self, now_s: float, counts: Counts) -> None:
        self._steps.append(self._step(now_s, counts))
        self._samples.append((now_s, counts))

    def recent(self, now_s: float, counts: Counts) -> Window:
        """What was counted in the last `RECENT_S`, or since the start if that was later."""
        old = [sample for sample in self._samples if sample[0] <= now_s - RECENT_S]
        then_s, earlier = old[-1] if old else self._samples[0]
        return window(counts.since(earlier), now_s - then_s)

    def steps(self, now_s: float, counts: Counts) -> list[Step]:
        return [*self._steps, self._step(now_s, counts)]

    def _step(self, now_s: float, counts: Counts) -> Step:
        then_s, earlier = self._samples[-1]
        grown = counts.since(earlier)
        from_cache = sum(grown.items.get(result, 0) for result in FROM_CACHE)
        return Step(
            seconds=now_s - then_s,
            requests=int(sum(buckets[inf] for buckets in grown.seconds.values())),
            from_cache=int(from_cache),
            asked=int(sum(grown.items.values()) - from_cache),
        )


def quantile(buckets: Buckets, q: float) -> float | None:
    """Estimated as Prometheus's ``histogram_quantile`` does: linear within a bucket, the largest finite bound for what
    is above that; None without observations."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0
    if not total:
        return None
    rank = q * total
    lower, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank and buckets[bound] > below:
            if bound == inf:
                break
            return lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        lower, below = (lower if bound == inf else bound), buckets[bound]
    return lower


def counts_of(families: Iterable[Family]) -> Counts:
    return _counts(_Samples(families))


def window(counts: Counts, seconds: float) -> Window:
    latency = {outcome: _latency(buckets) for outcome, buckets in counts.seconds.items()}
    requests = {outcome: of.count for outcome, of in latency.items()}
    items = _whole(counts.items)
    return Window(
        seconds=seconds,
        requests=requests,
        request_hit_rate=_share(
            requests.get(RequestOutcome.HIT, 0), sum(requests.values()) - requests.get(RequestOutcome.ERROR, 0)
        ),
        items=items,
        item_hit_rate=_item_hit_rate(items),
        tokens=_whole(counts.tokens),
        cost=dict(counts.cost),
        latency=latency,
    )


def status_of(
    families: Iterable[Family], about: About, history: History, *, now_s: float, uptime_s: float, is_draining: bool
) -> Status:
    """Everything. ``now_s`` is by the clock of ``history``."""
    samples = _Samples(families)
    counts = _counts(samples)
    store = samples.buckets("embedding_proxy_store_duration_seconds", "operation")
    errors = samples.by("embedding_proxy_store_errors_total", "reason")
    invalid = samples.by("embedding_proxy_store_invalid_records_total", "reason")
    return Status(
        version=about.version,
        base_url=about.base_url,
        uptime_s=uptime_s,
        is_draining=is_draining,
        since_start=window(counts, uptime_s),
        recent=history.recent(now_s, counts),
        history=history.steps(now_s, counts),
        models=_models(samples),
        breakers={
            circuit: BREAKER_STATES[int(state)].value
            for circuit, state in samples.by("embedding_proxy_breaker_state", "circuit").items()
        },
        upstreams=_upstreams(samples, about.upstreams),
        store=StoreStatus(
            url=about.store_url,
            reads=_latency(store.get("read", {})),
            writes=_latency(store.get("write", {})),
            errors=int(sum(n for reason, n in errors.items() if reason != "open")),
            invalid_records=int(sum(invalid.values())),
            forged_records=int(sum(invalid.get(flaw.value, 0) for flaw in FORGED)),
        ),
        memory=MemoryStatus(
            bytes=int(samples.total("embedding_proxy_memory_bytes")),
            limit_bytes=int(samples.total("embedding_proxy_memory_limit_bytes")),
            entries=int(samples.total("embedding_proxy_memory_entries")),
        ),
        load=Load(
            requests_in_flight=int(samples.total("embedding_proxy_requests_in_flight")),
            queued_items=int(samples.total("embedding_proxy_upstream_queued_items")),
            held_bytes=int(samples.total("embedding_proxy_held_request_bytes")),
            loop_lag=_latency(samples.buckets("embedding_proxy_event_loop_lag_seconds").get("", {})),
        ),
    )


class _Samples:
    def __init__(self, families: Iterable[Family]) -> None:
        self._of: dict[str, list[Sample]] = defaultdict(list)
        for family in families:
            for sample in family.samples:
                self._of[sample.name].append(sample)

    def total(self, name: str) -> float:
        return sum(sample.value for sample in self._of[name])

    def by(self, name: str, label: str, **others: str) -> dict[str, float]:
        """Sums by the value of ``label``, of the samples that have these other labels."""
        sums: dict[str, float] = defaultdict(float)
        for sample in self._of[name]:
            if others.items() <= sample.labels.items():
                sums[sample.labels.get(label, "")] += sample.value
        return dict(sums)

    def buckets(self, name: str, label: str = "") -> dict[str, Buckets]:
        """A histogram's buckets by the value of ``label``, under ``""`` if it has none."""
        found: dict[str, dict[float, float]] = defaultdict(dict)
        for sample in self._of[name + "_bucket"]:
            found[sample.labels.get(label, "")][float(sample.labels["le"])] = sample.value
        return dict(found)

    def grouped(self, name: str, outer: str, inner: str) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for sample in self._of[name]:
            found[sample.labels[outer]][sample.labels[inner]] += sample.value
        return found


def _counts(samples: _Samples) -> Counts:
    return Counts(
        items=samples.by("embedding_proxy_items_total", "result"),
        tokens=samples.by("embedding_proxy_tokens_total", "kind"),
        cost=samples.by("embedding_proxy_cost_total", "kind"),
        seconds=samples.buckets("embedding_proxy_request_duration_seconds", "outcome"),
    )


def _models(samples: _Samples) -> list[ModelStatus]:
    items = samples.grouped("embedding_proxy_items_total", "model", "result")
    tokens = samples.grouped("embedding_proxy_tokens_total", "model", "kind")
    cost = samples.grouped("embedding_proxy_cost_total", "model", "kind")
    found = [
        ModelStatus(
            name=name,
            items=int(sum(of.values())),
            item_hit_rate=_item_hit_rate(_whole(of)),
            tokens=_whole(tokens.get(name, {})),
            cost=dict(cost.get(name, {})),
        )
        for name, of in items.items()
    ]
    used = [model for model in found if model.items]
    return sorted(used, key=lambda model: (-model.items, model.name))[:_MAX_MODELS]


def _upstreams(samples: _Samples, known: Iterable[UpstreamStatus]) -> list[UpstreamStatus]:
    seconds = samples.buckets("embedding_proxy_upstream_duration_seconds", "upstream")
    answers = samples.grouped("embedding_proxy_upstream_answers_total", "upstream", "status")
    return [
        UpstreamStatus(
            name=own.name,
            base_url=own.base_url,
            provider=own.provider,
            models=own.models,
            calls=int(sum(answers.get(own.name, {}).values())),
            failed=int(sum(n for status, n in answers.get(own.name, {}).items() if not status.startswith("2"))),
            latency=_latency(seconds[own.name]) if own.name in seconds else None,
        )
        for own in known
    ]


def _latency(buckets: Buckets) -> Latency:
    return Latency(
        count=int(buckets.get(inf, 0)),
        p50_s=quantile(buckets, 0.5),
        p95_s=quantile(buckets, 0.95),
        p99_s=quantile(buckets, 0.99),
        limit_s=max((bound for bound in buckets if bound != inf), default=0.0),
    )


def _item_hit_rate(items: Mapping[str, int]) -> float | None:
    return _share(sum(items.get(result, 0) for result in FROM_CACHE), sum(items.values()))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _whole(counts: Mapping[str, float]) -> dict[str, int]:
    return {name: int(value) for name, value in counts.items()}


def _less(now: Mapping[_K, float], then: Mapping[_K, float]) -> dict[_K, float]:
    return {name: value - then.get(name, 0.0) for name, value in now.items()}
