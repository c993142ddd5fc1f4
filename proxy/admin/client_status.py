"""What clients use, their budgets, and why they get no hits, read from the metrics (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.admin.samples import Samples
from proxy.admin.window import integers, item_hit_rate
from proxy.telemetry import client_definitions as definitions


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStatus:
    """What one client used since the start."""

    name: str  # of the operator's list, or a pseudonym
    requests: dict[str, int]  # by outcome
    items: int
    item_hit_rate: float | None
    tokens: dict[str, int]
    cost: dict[str, float]
    bypasses: dict[str, int]  # requests that were relayed unread, by reason
    held_s: float  # how long its requests waited for rate limits
    last_used_s: float | None  # Unix time, to ten seconds; None: not since the start


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStatus:
    """A budget of one client in the present window, by all processes with the same store."""

    name: str
    client: str  # "*": all that share it
    unit: str  # tokens or money
    spent: float
    limit: float
    refused: int  # calls since the start


@dataclass(frozen=True, slots=True, kw_only=True)
class UncachedStatus:
    """Requests that can't be hits, since the start. Clients choose ``field`` and ``user_agent``."""

    client: str  # "" if clients are not told apart
    reason: str
    field: str
    user_agent: str
    requests: int


def clients_of(samples: Samples, last_used_s: Mapping[str, float]) -> list[ClientStatus]:
    requests = samples.counters_by(definitions.CLIENT_REQUESTS, "client", "outcome")
    items = samples.counters_by(definitions.CLIENT_ITEMS, "client", "result")
    tokens = samples.counters_by(definitions.CLIENT_TOKENS, "client", "kind")
    cost = samples.counters_by(definitions.CLIENT_COST, "client", "kind")
    bypasses = samples.counters_by(definitions.CLIENT_BYPASSES, "client", "reason")
    held = samples.counters(definitions.CLIENT_HELD_SECONDS, "client")
    clients = [
        ClientStatus(
            name=name,
            requests=integers(by_outcome),
            items=int(sum(items.get(name, {}).values())),
            item_hit_rate=item_hit_rate(integers(items.get(name, {}))),
            tokens=integers(tokens.get(name, {})),
            cost=dict(cost.get(name, {})),
            bypasses=integers(bypasses.get(name, {})),
            held_s=held.get(name, 0.0),
            last_used_s=last_used_s.get(name),
        )
        for name, by_outcome in requests.items()
    ]
    return sorted(clients, key=lambda client: (-sum(client.tokens.values()), client.name))


def budgets_of(samples: Samples) -> list[BudgetStatus]:
    limits = {tuple(labels.values()): limit for labels, limit in samples.gauge_children(definitions.BUDGET_LIMIT)}
    refused = samples.counters_by(definitions.BUDGET_REFUSALS, "budget", "client")
    budgets = [
        BudgetStatus(
            name=labels["budget"],
            client=labels["client"],
            unit=labels["unit"],
            spent=spent,
            limit=limits[tuple(labels.values())],
            refused=int(refused.get(labels["budget"], {}).get(labels["client"], 0)),
        )
        for labels, spent in samples.gauge_children(definitions.BUDGET_SPENT)
    ]
    return sorted(budgets, key=lambda budget: (-budget.spent / budget.limit, budget.name, budget.client))


def uncached_of(samples: Samples) -> list[UncachedStatus]:
    found = [
        UncachedStatus(**labels, requests=int(count))
        for labels, count in samples.counter_children(definitions.UNCACHED_REQUESTS)
    ]
    return sorted(found, key=lambda each: (-each.requests, each.client, each.reason, each.field, each.user_agent))
