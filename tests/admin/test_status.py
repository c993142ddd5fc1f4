"""Every number of the status, from metrics made by hand."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from math import inf

import pytest

from proxy.admin.history import RECENT_S, STEP_S, History, Step
from proxy.admin.latency import Latency, quantile
from proxy.admin.samples import Samples
from proxy.admin.status import About, MemoryStatus, ModelStatus, RateLimitStatus, Status, UpstreamStatus, status_of
from proxy.admin.window import counts_of
from proxy.cli.stats_text import render
from proxy.labels import OUTCOMES, ItemResult, RequestOutcome
from proxy.telemetry.lane_gauges import LaneState
from proxy.telemetry.metrics import Metrics

ABOUT = About(
    version="1.2.3",
    base_url="http://127.0.0.1:8080/v1",
    upstreams=(
        UpstreamStatus(name="openai", base_url="https://api.openai.com/v1", provider="openai", models=()),
        UpstreamStatus(name="tei", base_url="http://tei/v1", provider="tei", models=("e5-*",)),
    ),
    store_url="memory:",
)
NOTHING = Latency(count=0, p50_s=None, p95_s=None, p99_s=None, limit_s=300.0)


def status(metrics: Metrics, history: History | None = None, *, now_s: float = 0.0) -> Status:
    history = history or History(0.0)
    return status_of(metrics.families(), ABOUT, history, now_s=now_s, uptime_s=now_s, is_draining=False)


@pytest.mark.parametrize(
    ("buckets", "q", "expected"),
    [
        ({}, 0.5, None),
        ({1.0: 0, inf: 0}, 0.5, None),
        ({inf: 3}, 0.5, 0.0),
        # All in the first bucket: as if they were spread from 0 to its bound.
        ({1.0: 4, 2.0: 4, inf: 4}, 0.5, 0.5),
        ({1.0: 4, 2.0: 4, inf: 4}, 1.0, 1.0),
        # All above the last bound: that much or more.
        ({1.0: 0, 2.0: 0, inf: 4}, 0.01, 2.0),
        ({1.0: 0, 2.0: 0, inf: 4}, 0.99, 2.0),
        ({1.0: 2, 2.0: 4, inf: 4}, 0.5, 1.0),
        ({1.0: 2, 2.0: 4, inf: 4}, 0.75, 1.5),
        # Empty buckets between full ones take part in nothing.
        ({1.0: 1, 2.0: 1, 4.0: 2, inf: 2}, 0.75, 3.0),
        ({1.0: 1, 2.0: 1, 4.0: 1, inf: 2}, 0.75, 4.0),
        # The order that they come in does not matter.
        ({inf: 4, 2.0: 4, 1.0: 2}, 0.75, 1.5),
        ({1.0: 0, 2.0: 1, inf: 1}, 0.0, 1.0),
    ],
)
def test_quantiles_are_estimated_within_a_bucket(
    buckets: Mapping[float, float], q: float, expected: float | None
) -> None:
    assert quantile(buckets, q) == expected


def test_a_proxy_without_requests() -> None:
    shown = status(Metrics())
    assert shown.recent == shown.since_start
    window = shown.since_start
    assert window.requests == dict.fromkeys(OUTCOMES, 0)
    assert window.latency == dict.fromkeys(OUTCOMES, NOTHING)
    assert (window.request_hit_rate, window.item_hit_rate, window.cost) == (None, None, {})
    assert sum(window.items.values()) == 0
    assert shown.models == []
    assert shown.upstreams == list(ABOUT.upstreams)
    assert shown.breakers == {"store_read": "closed", "store_write": "closed"}
    assert shown.history == [Step(seconds=0.0, requests=0, from_cache=0, asked=0)]
    assert shown.memory == MemoryStatus(bytes=0, limit_bytes=0, entries=0)


def test_workers_of_which_none_has_been_read() -> None:
    found = status_of([], ABOUT, History(0.0), now_s=1.0, uptime_s=1.0, is_draining=False)
    assert "requests from cache" in render(found)


@pytest.fixture
def counted() -> Metrics:
    """Metrics of two models and the others, one of which has a price."""
    metrics = Metrics(prices={"priced": 2.0})
    metrics.watch_memory(size_bytes=lambda: 1000, entries=lambda: 7, limit_bytes=4000)
    for model in ("priced", "free"):
        metrics.admit_model(model)
    priced, free, other = (metrics.of_model(model) for model in ("priced", "free", "never answered"))
    for outcome, seconds in {"hit": [0.0001] * 3, "miss": [0.15], "error": [0.15, 400.0]}.items():
        for one in seconds:
            metrics.request_seconds[RequestOutcome(outcome)].observe(one)
    priced.items[ItemResult.MEMORY].inc(4)
    priced.items[ItemResult.DUPLICATE].inc(1)
    priced.items[ItemResult.UPSTREAM].inc(3)
    free.items[ItemResult.STORE].inc(1)
    free.items[ItemResult.JOINED].inc(1)
    other.items[ItemResult.BYPASS].inc(2)
    priced.bill(500_000)
    priced.save(1_000_000)
    free.save(10)
    metrics.breaker("store_write", "open")
    metrics.breaker("upstream openai", "half-open")
    metrics.upstream_seconds.labels("openai").observe(0.15)
    for response, times in {"200": 1, "429": 2, "timeout": 1}.items():
        metrics.upstream_responses.labels("openai", response).inc(times)
    metrics.rate_limit_refusals.labels("openai").inc()
    metrics.store_seconds["read"].observe(0.0001)
    metrics.store_errors.labels("read", "timeout").inc(2)
    metrics.store_errors.labels("write", "full").inc(3)
    metrics.store_errors.labels("write", "open").inc(7)
    metrics.store_invalid_records.labels("tag").inc()
    metrics.store_invalid_records.labels("untagged").inc(2)
    metrics.queued_items.set(9)
    metrics.held_bytes.set(2048)
    metrics.requests_in_flight.set(5)
    return metrics


def test_what_clients_asked_for_and_what_it_cost(counted: Metrics) -> None:
    shown = status(counted, now_s=60.0)
    window = shown.since_start
    assert (shown.version, shown.base_url, shown.uptime_s, window.seconds) == ("1.2.3", ABOUT.base_url, 60.0, 60.0)
    assert window.requests == {"hit": 3, "partial": 0, "miss": 1, "bypass": 0, "error": 2}
    assert window.request_hit_rate == 3 / 4
    assert window.items == {"memory": 4, "store": 1, "duplicate": 1, "joined": 1, "upstream": 3, "bypass": 2}
    assert window.item_hit_rate == 7 / 12
    assert window.tokens == {"billed": 500_000, "saved": 1_000_010}
    assert window.cost == {"billed": 1.0, "saved": 2.0}
    # 0.15 s is between the bounds 0.1 and 0.2.
    assert astuple(window.latency["miss"]) == (
        1,
        pytest.approx(0.15),
        pytest.approx(0.195),
        pytest.approx(0.199),
        300.0,
    )
    assert window.latency["error"].p50_s == pytest.approx(0.2)
    assert window.latency["error"].p99_s == 300.0


def test_each_model_and_the_others(counted: Metrics) -> None:
    shown = status(counted, now_s=60.0)
    assert shown.models == [
        ModelStatus(
            name="priced",
            items=8,
            item_hit_rate=5 / 8,
            tokens={"billed": 500_000, "saved": 1_000_000},
            cost={"billed": 1.0, "saved": 2.0},
        ),
        ModelStatus(name="free", items=2, item_hit_rate=1.0, tokens={"billed": 0, "saved": 10}, cost={}),
        ModelStatus(name="other", items=2, item_hit_rate=0.0, tokens={"billed": 0, "saved": 0}, cost={}),
    ]


def test_upstreams_store_memory_and_load(counted: Metrics) -> None:
    shown = status(counted, now_s=60.0)
    assert shown.breakers == {"store_read": "closed", "store_write": "open", "upstream openai": "half-open"}
    openai, tei = shown.upstreams
    assert openai.latency is not None
    assert (openai.calls, openai.failed, openai.latency.count, tei) == (4, 2, 1, ABOUT.upstreams[1])
    store = shown.store
    assert (store.url, store.errors, store.invalid_records, store.forged_records) == ("memory:", 5, 3, 1)
    assert astuple(store.reads) == (1, pytest.approx(0.0001), pytest.approx(0.00019), pytest.approx(0.000198), 0.5)
    assert astuple(store.writes) == (0, None, None, None, 0.5)
    assert shown.memory == MemoryStatus(bytes=1000, limit_bytes=4000, entries=7)
    load = shown.load
    assert (load.requests_in_flight, load.queued_items, load.held_bytes, load.loop_lag.count) == (5, 9, 2048, 0)


def test_rate_limits_are_shown_of_the_upstream_that_has_them() -> None:
    metrics = Metrics()
    for model in ("a", "b"):
        metrics.admit_model(model)
    metrics.watch_lanes(lambda: [LaneState("tei", "a", 0.0, 10.0), LaneState("tei", "b", 90.0, None)])
    openai, tei = status(metrics).upstreams
    assert openai.rate_limits == ()
    assert tei.rate_limits == (
        RateLimitStatus(model="b", held_s=90.0, calls_per_s=None),
        RateLimitStatus(model="a", held_s=0.0, calls_per_s=10.0),
    )


def test_the_models_with_the_most_items_are_shown() -> None:
    metrics = Metrics()
    for n in range(20):
        metrics.admit_model(f"m{n:02}")
        metrics.of_model(f"m{n:02}").items[ItemResult.MEMORY].inc(n)
    assert [model.name for model in status(metrics).models] == [f"m{n:02}" for n in range(19, 9, -1)]


@dataclass
class Traffic:
    """A proxy whose every request has one item, which is in memory."""

    metrics: Metrics = field(default_factory=Metrics)
    history: History = field(default_factory=lambda: History(0.0))

    def hits(self, n: int) -> None:
        for _ in range(n):
            self.metrics.request_seconds[RequestOutcome.HIT].observe(0.0001)
            self.metrics.of_model("m").items[ItemResult.MEMORY].inc()

    def sample(self, now_s: float) -> None:
        self.history.note(now_s, counts_of(Samples(self.metrics.families())))


def test_the_history_has_a_step_for_each_sample_and_one_that_grows() -> None:
    traffic = Traffic()
    traffic.hits(3)
    traffic.sample(STEP_S)
    traffic.hits(1)
    traffic.metrics.of_model("m").items[ItemResult.UPSTREAM].inc(2)
    shown = status(traffic.metrics, traffic.history, now_s=STEP_S + 4)
    assert shown.history == [
        Step(seconds=STEP_S, requests=3, from_cache=3, asked=0),
        Step(seconds=4.0, requests=1, from_cache=1, asked=2),
    ]


def test_the_recent_window_and_the_history_are_bounded() -> None:
    traffic = Traffic()
    for n in range(1, 101):
        traffic.hits(n)
        traffic.sample(n * STEP_S)
    shown = status(traffic.metrics, traffic.history, now_s=100 * STEP_S)
    assert shown.recent.seconds == RECENT_S
    assert shown.recent.requests["hit"] == sum(range(71, 101))
    assert shown.recent.latency["hit"].count == sum(range(71, 101))
    assert shown.since_start.requests["hit"] == sum(range(1, 101))
    assert [step.requests for step in shown.history] == [*range(41, 101), 0]


def test_in_the_first_five_minutes_the_recent_window_is_all_of_it() -> None:
    traffic = Traffic()
    traffic.hits(2)
    traffic.sample(STEP_S)
    shown = status(traffic.metrics, traffic.history, now_s=25.0)
    assert (shown.recent.seconds, shown.recent.requests["hit"]) == (25.0, 2)
