"""The ledger's rows as metrics, read when they are scraped."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from proxy.ledger.ledger import Ledger
from proxy.ledger.row import Row
from proxy.telemetry import client_definitions
from proxy.telemetry.definitions import Definition

_Samples = Counter[tuple[str, ...]]  # by label values


class ClientCounters(Collector):
    """Adds up each client's rows at each scrape, so that a request need not count anything twice."""

    def __init__(self, ledger: Ledger, registry: CollectorRegistry) -> None:
        self._ledger = ledger
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        samples = {definition: _Samples() for definition in client_definitions.BY_CLIENT}
        for row in self._ledger.rows():
            _add(row, samples)
        for definition, found in samples.items():
            family = CounterMetricFamily(definition.name, definition.help, labels=definition.labels)
            for values, value in found.items():
                family.add_metric(values, value)
            yield family


def _add(row: Row, samples: dict[Definition, _Samples]) -> None:
    client = row.client or ""
    for outcome, count in row.requests.items():
        samples[client_definitions.CLIENT_REQUESTS][client, outcome.value] += count
    for result, count in row.items.items():
        samples[client_definitions.CLIENT_ITEMS][client, result.value] += count
    for kind, tokens in (("billed", row.billed), ("saved", row.saved)):
        samples[client_definitions.CLIENT_TOKENS][client, kind] += tokens
    if row.price is not None:
        for kind, cost in zip(("billed", "saved"), row.cost, strict=True):
            samples[client_definitions.CLIENT_COST][client, kind] += cost  # type: ignore[assignment]
    for reason, count in row.bypasses.items():
        samples[client_definitions.CLIENT_BYPASSES][client, reason.value] += count
    samples[client_definitions.CLIENT_HELD_SECONDS][client,] += row.held_s  # type: ignore[assignment]
