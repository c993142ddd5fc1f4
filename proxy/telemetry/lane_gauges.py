"""Gauges of the rate limits that upstreams have, read when they are scraped."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from proxy.telemetry.definitions import RATE_LIMIT_CALLS_PER_SECOND, RATE_LIMIT_HELD_SECONDS, Definition


class LaneState(NamedTuple):
    """What is known of the rate limit of one upstream, model and credential."""

    upstream: str
    model: str | None
    held_s: float  # how long it has made calls wait; 0: it makes none wait
    calls_per_s: float | None  # None: no limit is known


_Series = tuple[str, str]  # upstream and model


class LaneGauges(Collector):
    """By upstream and model: the longest time of any credential, and the sum of the rates of all credentials."""

    def __init__(self, label_of: Callable[[str | None], str | None], *, registry: CollectorRegistry) -> None:
        self.lanes: Callable[[], Iterable[LaneState]] = tuple
        self._label_of = label_of
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        held_s: dict[_Series, float] = {}
        calls_per_s: dict[_Series, float] = {}
        for lane in self.lanes():
            if not lane.held_s and lane.calls_per_s is None:
                continue
            series = lane.upstream, self._label_of(lane.model) or ""
            held_s[series] = max(held_s.get(series, 0.0), lane.held_s)
            if lane.calls_per_s is not None:
                calls_per_s[series] = calls_per_s.get(series, 0.0) + lane.calls_per_s
        yield _family(RATE_LIMIT_HELD_SECONDS, held_s)
        yield _family(RATE_LIMIT_CALLS_PER_SECOND, calls_per_s)


def _family(definition: Definition, values: dict[_Series, float]) -> Metric:
    family = GaugeMetricFamily(definition.name, definition.help, labels=definition.labels)
    for series, value in values.items():
        family.add_metric(series, value)
    return family
