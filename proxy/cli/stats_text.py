"""The status as one screen of text (pure)."""

from collections.abc import Iterable, Sequence

from proxy.admin.latency import Latency
from proxy.admin.status import Status
from proxy.admin.window import Window
from proxy.amounts import byte_size, money, percent
from proxy.labels import OUTCOMES, ItemResult
from proxy.ledger.cause import Cause
from proxy.printable import printable

_NONE = "-"
_NAME_WIDTH = 24
_MODELS = 5
_CLIENTS = 10
_UNCACHED = 5
_BUDGETS = 10
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400

Row = Sequence[str]


def render(status: Status) -> str:
    """The screen, of at most 80 columns unless a store's URL or a circuit's name is long."""
    parts = [
        [f"embedding-proxy {status.version}, up {_duration(status.uptime_s)}, {status.base_url}"]
        + (["stopping: not ready, finishing in-flight requests"] if status.is_draining else []),
        _totals(status),
        _latencies(status.recent),
        _models(status),
        *([_clients(status)] if status.clients else []),
        *([_budgets(status)] if status.budgets else []),
        *([_uncached(status)] if status.uncached else []),
        _upstreams(status),
        *([_canary(status)] if status.canary else []),
        _rest(status),
    ]
    return "\n\n".join("\n".join(printable(line) for line in part) for part in parts)


def _totals(status: Status) -> list[str]:
    windows = status.recent, status.since_start
    rows = [
        ("", f"last {_duration(status.recent.seconds)}", "since start"),
        ("items from cache", *(_percent(of.item_hit_rate) for of in windows)),
        ("requests from cache", *(_percent(of.request_hit_rate) for of in windows)),
        ("requests", *(f"{sum(of.requests.values()):,}" for of in windows)),
        *((f"items: {result}", *(f"{of.items.get(result, 0):,}" for of in windows)) for result in ItemResult),
        *((f"tokens {kind}", *(f"{of.tokens.get(kind, 0):,}" for of in windows)) for kind in ("saved", "billed")),
    ]
    if status.since_start.cost:
        rows += [(f"money {kind}", *(money(of.cost.get(kind, 0.0)) for of in windows)) for kind in ("saved", "billed")]
    return _aligned(rows)


def _latencies(window: Window) -> list[str]:
    rows: list[Row] = [(f"last {_duration(window.seconds)}", "requests", "p50", "p95", "p99")]
    for outcome in OUTCOMES:
        of = window.latency[outcome]
        rows.append((outcome, f"{of.count:,}", *(_took(s, of) for s in (of.p50_s, of.p95_s, of.p99_s))))
    return _aligned(rows)


def _models(status: Status) -> list[str]:
    if not status.models:
        return ["no model has responded yet"]
    rows = [("model", "items", "from cache", "tokens saved")]
    for model in status.models[:_MODELS]:
        saved = f"{model.tokens.get('saved', 0):,}"
        rows.append((_truncated(model.name), f"{model.items:,}", _percent(model.item_hit_rate), saved))
    return _aligned(rows)


def _clients(status: Status) -> list[str]:
    priced = bool(status.since_start.cost)
    rows = [("client", "requests", "from cache", "tokens saved", "billed", *(["money billed"] if priced else []))]
    for client in status.clients[:_CLIENTS]:
        tokens = (f"{client.tokens.get(kind, 0):,}" for kind in ("saved", "billed"))
        cost = [money(client.cost.get("billed", 0.0))] if priced else []
        requests = f"{sum(client.requests.values()):,}"
        rows.append((_truncated(client.name, 15), requests, _percent(client.item_hit_rate), *tokens, *cost))
    lines = _aligned(rows, 15)
    if len(status.clients) > _CLIENTS:
        lines.append(f"and {len(status.clients) - _CLIENTS} more: embedding-proxy stats --json")
    return lines


def _budgets(status: Status) -> list[str]:
    rows: list[Row] = [("budget of client", "used", "spent", "limit", "refused")]
    for budget in status.budgets[:_BUDGETS]:
        name = _truncated(f"{budget.name} of {budget.client}")
        write = money if budget.unit == "money" else "{:,.0f}".format
        amounts = write(budget.spent), write(budget.limit)
        rows.append((name, _percent(budget.spent / budget.limit), *amounts, f"{budget.refused:,}"))
    return _aligned(rows)


def _uncached(status: Status) -> list[str]:
    lines = ["not cached, and why"]
    for each in status.uncached[:_UNCACHED]:
        why = str(Cause(each.reason, each.field))
        whose = " ".join(filter(None, (each.client, each.user_agent)))
        lines.append(f"{each.requests:>10,}  {_truncated(why, 36):<37}{_truncated(whose, 30)}".rstrip())
    return lines


def _upstreams(status: Status) -> list[str]:
    rows: list[Row] = [("upstream", "calls", "failed", "p50", "p99")]
    for own in status.upstreams:
        of = own.latency
        took = (_NONE, _NONE) if of is None else (_took(of.p50_s, of), _took(of.p99_s, of))
        rows.append((_truncated(own.name), f"{own.calls:,}", f"{own.failed:,}", *took))
    return _aligned(rows) + [
        f"{_truncated(own.name)}: {_truncated(limit.model)} held by its rate limit for {_duration(limit.held_s)}"
        + ("" if limit.calls_per_s is None else f", {limit.calls_per_s:.3g} calls/s")
        for own in status.upstreams
        for limit in own.rate_limits
        if limit.held_s
    ]


def _canary(status: Status) -> list[str]:
    rows: list[Row] = [("canary", "verdict", "distance", "noise", "epoch")]
    rows += [
        (_truncated(own.model), own.verdict, f"{own.distance:.1e}", f"{own.noise:.1e}", str(own.epoch))
        for own in status.canary
    ]
    return _aligned(rows)


def _rest(status: Status) -> list[str]:
    store, memory, load = status.store, status.memory, status.load
    breakers = ", ".join(f"{circuit} {state}" for circuit, state in status.breakers.items())
    return [
        f"breakers  {breakers}",
        f"store     {store.url}, read p99 {_took(store.reads.p99_s, store.reads)}, {store.errors:,} errors"
        + (f", {store.forged_records:,} forged records" if store.forged_records else ""),
        f"memory    {byte_size(memory.bytes)} of {byte_size(memory.limit_bytes)}, {memory.entries:,} entries",
        f"now       {load.requests_in_flight:,} requests in flight, {load.queued_items:,} items queued,"
        f" {byte_size(load.held_bytes)} held",
    ]


def _aligned(rows: Iterable[Row], width: int = _NAME_WIDTH) -> list[str]:
    return [f"{printable(name):<{width}}" + "".join(f"{cell:>13}" for cell in cells) for name, *cells in rows]


def _truncated(name: str, width: int = _NAME_WIDTH) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


def _percent(part: float | None) -> str:
    return _NONE if part is None else percent(part)


def _took(seconds: float | None, of: Latency) -> str:
    if seconds is None:
        return _NONE
    at_least = ">= " if seconds >= of.limit_s else ""
    if seconds >= 1:
        return f"{at_least}{seconds:.1f} s"
    # An estimate has no more than two significant digits.
    return f"{at_least}{float(f'{seconds * 1000:.2g}'):g} ms"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min" + (f" {whole % _MINUTE_S} s" if whole % _MINUTE_S else "")
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"
