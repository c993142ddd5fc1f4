"""The PromQL of the panels (pure).

``by`` is a list of labels, as ``"model, status"``; ``labels`` are matchers, as ``'outcome="hit"'``. Queries are a
mapping from legend to expression, as a panel takes them.
"""

from collections.abc import Iterable

Queries = dict[str, str]

# Grafana fills them in: the window a rate needs at this resolution, and the whole time shown.
RATE, SHOWN = "$__rate_interval", "$__range"


def series(name: str, *labels: str, by_model: bool = False) -> str:
    """The selector of a metric, narrowed by the dashboard's variables."""
    model = ['model=~"$model"'] if by_model else []
    chosen = ", ".join(['job=~"$job"', 'instance=~"$instance"', *model, *labels])
    return f"embedding_proxy_{name}{{{chosen}}}"


def recorded(rule: str, *, with_instance: bool = False, offset: str = "") -> str:
    """What a recording rule wrote, by the rule's name."""
    instance = ', instance=~"$instance"' if with_instance else ""
    return f'{rule}{{job=~"$job"{instance}}}{f" offset {offset}" if offset else ""}'


def total(by: str, name: str, *labels: str, by_model: bool = False, window: str = RATE) -> str:
    """A counter's rate per second, summed; over `SHOWN`, its increase."""
    function = "increase" if window == SHOWN else "rate"
    summed = f"sum by ({by})" if by else "sum"
    return f"{summed} ({function}({series(name, *labels, by_model=by_model)}[{window}]))"


def totals(by: str, name: str, *labels: str, by_model: bool = False) -> Queries:
    """The rates of a counter ``by`` labels, which make the legend."""
    return {_legend(by): total(by, name, *labels, by_model=by_model)}


def each_instance(value: str) -> Queries:
    """A gauge, or a ratio of gauges, by instance."""
    return {"{{instance}}": f"max by (instance) ({value})"}


def each_model_of_an_upstream(function: str, name: str) -> Queries:
    """A gauge that has both labels, over all instances."""
    return {_legend("upstream, model"): f"{function} by (upstream, model) ({series(name)})"}


def quantile(q: float, by: str, histogram: str, *labels: str) -> str:
    les = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {total(les, f'{histogram}_bucket', *labels)})"


def quantiles(by: str, histogram: str, *labels: str, of: Iterable[float] = (0.5, 0.95, 0.99)) -> Queries:
    return {f"{_legend(by)} p{q * 100:g}".strip(): quantile(q, by, histogram, *labels) for q in of}


def counted(histogram: str) -> Queries:
    """Quantiles and mean of a whole number that is at least 1; the interpolated quantile could be below 1."""
    return {
        "p50": f"clamp_min({quantile(0.5, '', histogram)}, 1)",
        "p95": f"clamp_min({quantile(0.95, '', histogram)}, 1)",
        "mean": f"{total('', f'{histogram}_sum')} / {total('', f'{histogram}_count')}",
    }


def hit_rate_by_item(window: str = RATE, by: str = "") -> str:
    """Of all items, those that were not fetched from an upstream."""
    spared = 'result!~"upstream|bypass"'
    return (
        f"{total(by, 'items_total', spared, by_model=True, window=window)}"
        f" / {total(by, 'items_total', by_model=True, window=window)}"
    )


def hit_rate_by_request(window: str = RATE) -> str:
    """Of all requests without an error, those for which no item was fetched from an upstream."""
    hits = total("", "requests_total", 'outcome="hit"', by_model=True, window=window)
    without_errors = total("", "requests_total", 'outcome!="error"', by_model=True, window=window)
    return f"{_or_zero(hits)} / {without_errors}"


def saved_of_all_tokens() -> str:
    """In the time shown, of what would have been billed without the proxy."""
    saved = total("", "tokens_total", 'kind="saved"', by_model=True, window=SHOWN)
    return f"{saved} / {total('', 'tokens_total', by_model=True, window=SHOWN)}"


def errors_of_requests() -> str:
    """In the time shown, as the next two."""
    failed = total("", "requests_total", 'outcome="error"', by_model=True, window=SHOWN)
    return f"{_or_zero(failed)} / {total('', 'requests_total', by_model=True, window=SHOWN)}"


def errors_of_calls() -> str:
    """Failed calls, as the alert EmbeddingProxyUpstreamErrors defines them: without those that are sent again."""
    failed = total("", "upstream_answers_total", 'status=~"429|5..|unreachable|timeout"', window=SHOWN)
    held = _or_zero(total("", "upstream_rate_limit_refusals_total", window=SHOWN))
    calls = total("", "upstream_answers_total", window=SHOWN)
    return f"clamp_min({_or_zero(failed)} - {held}, 0) / clamp_min({calls} - {held}, 1)"


def errors_of_store() -> str:
    """Operations that an open breaker rejected are not counted."""
    failed = total("", "store_errors_total", 'reason!="open"', window=SHOWN)
    return f"{_or_zero(failed)} / {total('', 'store_duration_seconds_count', window=SHOWN)}"


def up() -> str:
    """Of instances that were a proxy within a day: `up` alone covers everything that Prometheus scrapes."""
    return f'up{{job=~"$job", instance=~"$instance"}} and on (job, instance) max_over_time({series("build_info")}[1d])'


def instances_down() -> str:
    return f"count(({up()}) == 0) or vector(0)"


def breakers_not_closed() -> str:
    return f"count({series('breaker_state')} > 0) or vector(0)"


def alerts_firing() -> str:
    return 'count(ALERTS{alertname=~"EmbeddingProxy.+", alertstate="firing", job=~"$job"}) or vector(0)'


def calls_avoided(window: str = RATE) -> str:
    """Without the proxy each of these requests would have been a call; with it, a bypass is still one."""
    not_bypassed = 'outcome!="bypass"'
    return (
        f"{total('', 'requests_total', not_bypassed, window=window)}"
        f" - {total('', 'upstream_batch_items_count', window=window)}"
    )


def _or_zero(value: str) -> str:
    """0 where there is no series: without a hit or an error Prometheus has none."""
    return f"({value} or vector(0))"


def _legend(by: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by.split(", ") if label)
