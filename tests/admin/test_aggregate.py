"""The metrics of several workers, added up."""

from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

from proxy.admin.aggregate import Workers, add_up
from proxy.labels import RequestOutcome
from proxy.telemetry import counters
from proxy.telemetry.metrics import Metrics, text_of

COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 1000), max_size=3)
SECONDS = st.lists(st.sampled_from([0.05, 0.5, 5.0]))


def family(registry: CollectorRegistry) -> list[Metric]:
    return list(text_string_to_metric_families(text_of(registry.collect()).decode()))


@given(st.lists(st.tuples(COUNTS, SECONDS), max_size=4))
def test_the_sum_of_workers_is_the_count_of_one_process(parts: list[tuple[dict[str, int], list[float]]]) -> None:
    def counted(all_parts: list[tuple[dict[str, int], list[float]]]) -> list[Metric]:
        registry = CollectorRegistry()
        counter = counters.Counter("things", "What.", ["of"], registry=registry)
        histogram = counters.Histogram("took_seconds", "How.", buckets=(0.1, 1.0), registry=registry)
        for counts, seconds in all_parts:
            for of, count in counts.items():
                counter.labels(of).inc(count)
            for value in seconds:
                histogram.observe(value)
        return family(registry)

    whole = add_up([counted([part]) for part in parts])
    if parts:
        assert series(whole) == pytest.approx(series(counted(parts)))
    else:
        assert whole == []


def series(families: list[Metric]) -> dict[str, float]:
    return {f"{sample.name}{sorted(sample.labels.items())}": sample.value for of in families for sample in of.samples}


def test_states_are_not_added_up() -> None:
    parts = []
    for state in ("closed", "open", "half-open"):
        metrics = Metrics()
        metrics.breaker("upstream", state)
        parts.append(metrics.families())
    sums = series(add_up(parts))
    assert sums["embedding_proxy_breaker_state[('circuit', 'upstream')]"] == 2
    assert [value for name, value in sums.items() if "build_info" in name] == [1]


async def test_an_unreachable_worker_loses_only_its_gauges(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    metrics.of_model(None).count_request(RequestOutcome.HIT, 200)
    metrics.queued_items.set(5)
    app = web.Application()

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=text_of(metrics.families()))

    app.router.add_get("/metrics", exposition)
    runner = web.AppRunner(app)
    await runner.setup()
    path = tmp_path / "1.sock"
    await web.UnixSite(runner, str(path)).start()
    workers = Workers(tmp_path, configured=2, ended=lambda: 7)
    name, queued = "embedding_proxy_requests_total", "embedding_proxy_upstream_queued_items"

    async def sums() -> tuple[float, float]:
        found = series(list(await workers.families()))
        return sum(value for of, value in found.items() if of.startswith(name)), found.get(f"{queued}[]", 0.0)

    async def of_workers() -> list[float]:
        found = series(list(await workers.families()))
        return [found[f"embedding_proxy_workers_{name}[]"] for name in ("running", "configured", "ended_total")]

    assert await sums() == (1, 5)
    assert await of_workers() == [1, 2, 7]
    await runner.cleanup()
    path.touch()
    assert "can't read the metrics of the worker with process ID 1: " not in caplog.text
    assert await sums() == (1, 5)  # dead or only slow: nobody knows yet
    assert await of_workers() == [0, 2, 7]
    assert "can't read the metrics of the worker with process ID 1: " in caplog.text
    path.unlink()
    assert await sums() == (1, 0)
    assert await sums() == (1, 0)
