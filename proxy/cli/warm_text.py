"""The result of ``embedding-proxy warm`` as text and as JSON (pure)."""

from collections.abc import Mapping
from typing import Any

from proxy.amounts import counted
from proxy.filling.results import Forecast, Warmed
from proxy.prices import cost_of

_UNPRICED = "no price: --config names a file whose [prices] have one for this model"


def forecast_text(found: Forecast, *, lines: int, model: str, prices: Mapping[str, float]) -> str:
    distinct = found.cached + found.missing
    return "\n".join(
        [
            _corpus(lines, distinct),
            f"  cached      {found.cached:>12,}",
            f"  to pay for  {found.missing:>12,}",
            f"  tokens      {found.missing_tokens:>12,}  estimated",
            f"  cost        {_money(found.missing_tokens, model, prices, is_estimated=True)}",
        ]
    )


def forecast_json(found: Forecast, *, lines: int, model: str, prices: Mapping[str, float]) -> dict[str, Any]:
    return {
        "model": model,
        "lines": lines,
        "distinct": found.cached + found.missing,
        "cached": found.cached,
        "to_pay_for": found.missing,
        "estimated_tokens": found.missing_tokens,
        "estimated_cost": cost_of(found.missing_tokens, model, prices),
    }


def warmed_text(done: Warmed, *, lines: int, distinct: int, model: str, prices: Mapping[str, float]) -> str:
    shown = [
        f"{_corpus(lines, distinct)}, {counted(done.requests, 'request')}",
        f"  sent        {done.sent:>12,}",
        f"  hits        {done.hits:>12,}",
        f"  misses      {done.misses:>12,}",
        f"  tokens      {done.billed_tokens:>12,}  billed",
        f"  cost        {_money(done.billed_tokens, model, prices, is_estimated=False)}",
    ]
    if done.refused:
        shown.append(f"  refused     {done.refused:>12,}")
        shown += [f"    line {refused.line}: {refused.reason}" for refused in done.refusals]
        if done.refused > len(done.refusals):
            shown.append(f"    and {done.refused - len(done.refusals):,} more")
    if done.stopped is not None:
        left = distinct - done.sent - done.refused
        shown.append(
            f"stopped with {counted(left, 'text')} left; run the same command again to continue: {done.stopped}"
        )
    return "\n".join(shown)


def warmed_json(done: Warmed, *, lines: int, distinct: int, model: str, prices: Mapping[str, float]) -> dict[str, Any]:
    return {
        "model": model,
        "lines": lines,
        "distinct": distinct,
        "requests": done.requests,
        "sent": done.sent,
        "hits": done.hits,
        "misses": done.misses,
        "billed_tokens": done.billed_tokens,
        "cost": cost_of(done.billed_tokens, model, prices),
        "refused": done.refused,
        "refusals": [{"line": refused.line, "reason": refused.reason} for refused in done.refusals],
        "stopped": done.stopped,
    }


def _corpus(lines: int, distinct: int) -> str:
    return f"{counted(lines, 'line')} with {counted(distinct, 'distinct text')}"


def _money(tokens: int, model: str, prices: Mapping[str, float], *, is_estimated: bool) -> str:
    cost = cost_of(tokens, model, prices)
    if cost is None:
        return _UNPRICED
    return f"{cost:>12,.4f}" + ("  estimated" if is_estimated else "")
