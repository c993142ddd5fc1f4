"""Counters and histograms are exposed as those of prometheus-client are."""

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from proxy.telemetry import counters

BOUNDS = (0.001, 0.5, 1.0, 60.0)
VALUES = st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 100, allow_subnormal=False)))


def exposition(kind: object, counts: list[tuple[str, float]], spreads: list[tuple[str, float]]) -> list[str]:
    registry = CollectorRegistry()
    counter = kind.Counter("some_things", "What.", ["of"], registry=registry)  # type: ignore[attr-defined]
    plain = kind.Counter("other_things", "What.", registry=registry)  # type: ignore[attr-defined]
    histogram = kind.Histogram("took_seconds", "How.", ["of"], buckets=BOUNDS, registry=registry)  # type: ignore[attr-defined]
    lone = kind.Histogram("lone_seconds", "How.", buckets=BOUNDS, registry=registry)  # type: ignore[attr-defined]
    for of, amount in counts:
        counter.labels(of).inc(amount)
        plain.inc()
    for of, seconds in spreads:
        histogram.labels(of).observe(seconds)
        lone.observe(seconds)
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**6))), VALUES)
def test_the_exposition_equals_that_of_prometheus_client(counts: list[tuple[str, float]], values: list[float]) -> None:
    spreads = [("ab"[index % 2], value) for index, value in enumerate(values)]
    assert exposition(counters, counts, spreads) == exposition(prometheus_client, counts, spreads)


def test_a_wrong_number_of_labels_is_rejected() -> None:
    counter = counters.Counter("things", "What.", ["of"], registry=CollectorRegistry())
    with pytest.raises(ValueError, match="labels"):
        counter.labels("a", "b")
