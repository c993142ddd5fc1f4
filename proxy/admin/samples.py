"""Metrics as samples, to look up by name and label (pure).

https://prometheus.io/docs/concepts/data_model/
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from proxy.telemetry.definitions import Definition

# A histogram: by the upper bound of each bucket, the number of observations at or below it.
Buckets = Mapping[float, float]


class Sample(Protocol):
    """One value of one series."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def value(self) -> float: ...


class Family(Protocol):
    """One metric."""

    @property
    def samples(self) -> Sequence[Sample]: ...


class Samples:
    def __init__(self, families: Iterable[Family]) -> None:
        self._by_name: dict[str, list[Sample]] = defaultdict(list)
        for family in families:
            for sample in family.samples:
                self._by_name[sample.name].append(sample)

    def gauge(self, metric: Definition) -> int:
        """A gauge of whole numbers; 0 if there are no samples of it."""
        return int(sum(sample.value for sample in self._by_name[metric.name]))

    def gauges(self, metric: Definition, label: str) -> dict[str, float]:
        """A gauge by the value of ``label``."""
        return self._sums(metric.name, label)

    def gauges_by(self, metric: Definition, *labels: str) -> dict[tuple[str, ...], float]:
        """A gauge by the values of ``labels``, which must be different for each of its samples."""
        return {tuple(sample.labels[label] for label in labels): sample.value for sample in self._by_name[metric.name]}

    def counters(self, metric: Definition, label: str) -> dict[str, float]:
        """A counter by the value of ``label``, summed over all others."""
        return self._sums(metric.name + "_total", label)

    def counters_by(self, metric: Definition, outer: str, inner: str) -> dict[str, dict[str, float]]:
        """A counter by the value of the label ``outer``, and for each by that of ``inner``."""
        sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for sample in self._by_name[metric.name + "_total"]:
            sums[sample.labels[outer]][sample.labels[inner]] += sample.value
        return sums

    def gauge_children(self, metric: Definition) -> list[tuple[Mapping[str, str], float]]:
        """A gauge by all of its labels."""
        return [(sample.labels, sample.value) for sample in self._by_name[metric.name]]

    def counter_children(self, metric: Definition) -> list[tuple[Mapping[str, str], float]]:
        """A counter by all of its labels."""
        return [(sample.labels, sample.value) for sample in self._by_name[metric.name + "_total"]]

    def buckets(self, metric: Definition, label: str = "") -> dict[str, Buckets]:
        """A histogram by the value of ``label``, under ``""`` if it has no labels."""
        found: dict[str, dict[float, float]] = defaultdict(dict)
        for sample in self._by_name[metric.name + "_bucket"]:
            found[sample.labels.get(label, "")][float(sample.labels["le"])] = sample.value
        return dict(found)

    def _sums(self, name: str, label: str) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        for sample in self._by_name[name]:
            sums[sample.labels.get(label, "")] += sample.value
        return dict(sums)
