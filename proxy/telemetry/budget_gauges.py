"""The accounts of budgets as gauges, read when they are scraped."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from proxy.ledger.spending import Account
from proxy.telemetry.client_definitions import BUDGET_LIMIT, BUDGET_SPENT


class BudgetGauges(Collector):
    """``source`` returns the accounts of the present windows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.source: Callable[[], Iterable[Account]] = tuple
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        spent = GaugeMetricFamily(BUDGET_SPENT.name, BUDGET_SPENT.help, labels=BUDGET_SPENT.labels)
        limit = GaugeMetricFamily(BUDGET_LIMIT.name, BUDGET_LIMIT.help, labels=BUDGET_LIMIT.labels)
        for account in self.source():
            budget = account.budget
            labels = budget.name, account.client, budget.unit
            spent.add_metric(labels, budget.amount(account.spent))
            limit.add_metric(labels, budget.amount(budget.limit_units))
        yield spent
        yield limit
