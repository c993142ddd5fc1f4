"""Write the dashboards: ``python grafana/dashboards.py`` (pure but for the files it writes).

The JSON is Grafana's classic model (https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/),
of the schema version that Grafana 10.0 wrote; later ones migrate it when they load it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
_SCHEMA_VERSION = 38
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_QUANTILES = (0.5, 0.95, 0.99)

GREEN, YELLOW, ORANGE, RED = "green", "yellow", "orange", "red"
# From which value on a colour counts; the first one is what everything below has.
Steps = Sequence[tuple[float | None, str]]
_PLAIN: Steps = [(None, GREEN)]
_BREAKER_STATES = {0: ("closed", GREEN), 1: ("half-open", YELLOW), 2: ("open", RED)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    expr: str
    legend: str = "__auto"
    is_instant: bool = False  # the value now, for a table or a ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    description: str
    targets: Sequence[Target]
    unit: str
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    steps: Steps = field(default_factory=lambda: _PLAIN)
    maximum: float | None = None
    decimals: int | None = None
    is_stacked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    name: str
    title: str
    description: str
    rows: Mapping[str, Sequence[Panel]]

    @property
    def uid(self) -> str:
        return f"embedding-proxy-{self.name}"


# --- PromQL


def series(name: str, *labels: str, by_model: bool = False) -> str:
    """The selector of a metric, narrowed to what the variables say."""
    model = ['model=~"$model"'] if by_model else []
    chosen = ", ".join(['job=~"$job"', 'instance=~"$instance"', *model, *labels])
    return f"embedding_proxy_{name}{{{chosen}}}"


def total(by: str, name: str, *labels: str, by_model: bool = False, window: str = "$__rate_interval") -> str:
    """A counter's rate a second, summed; with ``window="$__range"`` what it grew by in the time shown."""
    function = "increase" if window == "$__range" else "rate"
    summed = f"sum by ({by})" if by else "sum"
    return f"{summed} ({function}({series(name, *labels, by_model=by_model)}[{window}]))"


def quantile(q: float, by: str, histogram: str, *labels: str) -> str:
    les = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {total(les, f'{histogram}_bucket', *labels)})"


def counted(histogram: str) -> list[Target]:
    """Quantiles and mean of what is a whole number, and 1 at least: between 0 and 1 the quantile is made up."""
    return [
        *(Target(expr=f"clamp_min({quantile(q, '', histogram)}, 1)", legend=f"p{q * 100:g}") for q in (0.5, 0.95)),
        Target(expr=f"{total('', f'{histogram}_sum')} / {total('', f'{histogram}_count')}", legend="mean"),
    ]


def quantiles(by: str, histogram: str, *labels: str, of: Iterable[float] = _QUANTILES) -> list[Target]:
    named = f"{{{{{by}}}}} " if by else ""
    return [Target(expr=quantile(q, by, histogram, *labels), legend=f"{named}p{q * 100:g}") for q in of]


def hit_rate_by_item(window: str = "$__rate_interval", by: str = "") -> str:
    """Of all items, those that nobody was asked for upstream."""
    spared = 'result!~"upstream|bypass"'
    return (
        f"{total(by, 'items_total', spared, by_model=True, window=window)}"
        f" / {total(by, 'items_total', by_model=True, window=window)}"
    )


def hit_rate_by_request(window: str = "$__rate_interval") -> str:
    hits = total("", "requests_total", 'outcome="hit"', by_model=True, window=window)
    answered = total("", "requests_total", 'outcome!="error"', by_model=True, window=window)
    # Without a hit or an error there is no such series, and that is 0 and not no data.
    return f"({hits} or vector(0)) / {answered}"


def error_ratio(window: str) -> str:
    failed = total("", "requests_total", 'outcome="error"', by_model=True, window=window)
    return f"({failed} or vector(0)) / {total('', 'requests_total', by_model=True, window=window)}"


def calls_avoided(window: str = "$__rate_interval") -> str:
    """Without the proxy each of these requests would have been a call; with it, a bypass is still one."""
    asked = 'outcome!="bypass"'
    return (
        f"{total('', 'requests_total', asked, window=window)}"
        f" - {total('', 'upstream_batch_items_count', window=window)}"
    )


def recorded(rule: str, *, with_instance: bool = False, offset: str = "") -> str:
    instance = ', instance=~"$instance"' if with_instance else ""
    return f'{rule}{{job=~"$job"{instance}}}{f" offset {offset}" if offset else ""}'


# --- the dashboards

_HIT_STEPS: Steps = [(None, RED), (0.2, ORANGE), (0.5, YELLOW), (0.8, GREEN)]
_ERROR_STEPS: Steps = [(None, GREEN), (0.01, YELLOW), (0.05, RED)]
_FULL_STEPS: Steps = [(None, GREEN), (0.6, YELLOW), (0.8, RED)]
_ANY_STEPS: Steps = [(None, GREEN), (0.000001, RED)]
_LAG_STEPS: Steps = [(None, GREEN), (0.02, YELLOW), (0.1, RED)]


def _overview() -> Dashboard:
    return Dashboard(
        name="overview",
        title="Embedding proxy / Overview",
        description="What the cache saves, and what its clients see.",
        rows={
            "In the time shown": [
                _stat(
                    "Hit rate by item",
                    "Of all input items, those that were not asked of an upstream: found in memory or store, repeated"
                    " within their request, or joined to another request's fetch.",
                    hit_rate_by_item("$__range"),
                    "percentunit",
                    _HIT_STEPS,
                ),
                _stat(
                    "Hit rate by request",
                    "Of all requests that were not answered with an error, those for which no item was asked of an"
                    " upstream.",
                    hit_rate_by_request("$__range"),
                    "percentunit",
                    _HIT_STEPS,
                ),
                _stat(
                    "Saved tokens",
                    "What cached and duplicate items cost when they were first asked.",
                    total("", "tokens_total", 'kind="saved"', by_model=True, window="$__range"),
                    "short",
                ),
                _stat(
                    "Saved money",
                    "The saved tokens in the currency of [prices] in the configuration; models without a price don't"
                    " count, and without prices there is no value.",
                    total("", "cost_total", 'kind="saved"', by_model=True, window="$__range"),
                    "none",
                    decimals=2,
                ),
                _stat(
                    "Upstream calls avoided",
                    "Requests that were not relayed unread, less the embeddings calls made for them: the work of hits"
                    " and of merging. Fallbacks, validations and splitting large requests cost calls. Of all models: a"
                    " call is not counted by model.",
                    calls_avoided("$__range"),
                    "short",
                ),
                _stat(
                    "Requests answered with an error",
                    "The upstream's errors that were passed on, and the proxy's own.",
                    error_ratio("$__range"),
                    "percentunit",
                    _ERROR_STEPS,
                ),
            ],
            "Hits": [
                Panel(
                    title="Hit rate",
                    description="By item, and by whole requests.",
                    targets=[
                        Target(expr=hit_rate_by_item(), legend="by item"),
                        Target(expr=hit_rate_by_request(), legend="by request"),
                    ],
                    unit="percentunit",
                    maximum=1,
                    steps=_HIT_STEPS,
                ),
                Panel(
                    title="Hit rate by item against last week",
                    description="Over an hour, of all instances and models of a job; needs the recording rules. The"
                    " alert EmbeddingProxyHitRateDrop compares these two.",
                    targets=[
                        Target(expr=recorded("job:embedding_proxy_item_hits:ratio_rate1h"), legend="{{job}}"),
                        Target(
                            expr=recorded("job:embedding_proxy_item_hits:ratio_rate1h", offset="1w"),
                            legend="{{job}} a week before",
                        ),
                    ],
                    unit="percentunit",
                    maximum=1,
                    steps=_HIT_STEPS,
                ),
                Panel(
                    title="Items by where their vectors came from",
                    description="memory, store; duplicate, within its request; joined, to another request's fetch;"
                    " upstream; bypass, relayed unread.",
                    targets=[Target(expr=total("result", "items_total", by_model=True), legend="{{result}}")],
                    unit="cps",
                    is_stacked=True,
                ),
                Panel(
                    title="Requests by outcome",
                    description="hit, no item was asked upstream; partial, some were; miss, all were; bypass, relayed"
                    " unread; error.",
                    targets=[Target(expr=total("outcome", "requests_total", by_model=True), legend="{{outcome}}")],
                    unit="reqps",
                    is_stacked=True,
                ),
                Panel(
                    title="Upstream calls avoided",
                    description="Requests that were not relayed unread, less the calls made for them. Of all models.",
                    targets=[Target(expr=calls_avoided(), legend="avoided")],
                    unit="cps",
                ),
                Panel(
                    title="Top models",
                    description="Items in the time shown. Models beyond the fiftieth, and those that no upstream ever"
                    " answered for, are `other`.",
                    targets=[
                        Target(
                            expr=f"topk(10, {total('model', 'items_total', by_model=True, window='$__range')})",
                            legend="{{model}}",
                            is_instant=True,
                        )
                    ],
                    unit="short",
                    kind="bargauge",
                ),
            ],
            "Savings": [
                Panel(
                    title="Tokens",
                    description="billed, as the upstream counted them; saved, what cached and repeated ones once cost.",
                    targets=[Target(expr=total("kind", "tokens_total", by_model=True), legend="{{kind}}")],
                    unit="cps",
                    width=12,
                ),
                Panel(
                    title="Money an hour",
                    description="The same at the configured prices, in their currency; no data without [prices].",
                    targets=[Target(expr=f"3600 * {total('kind', 'cost_total', by_model=True)}", legend="{{kind}}")],
                    unit="none",
                    width=12,
                    decimals=2,
                ),
            ],
            "Latency": [
                *(
                    Panel(
                        title=f"Latency p{q * 100:g} by outcome",
                        description="From the last byte of the request's headers to the answer being ready. Of all"
                        " models: latency is not counted by model.",
                        targets=[
                            Target(expr=quantile(q, "outcome", "request_duration_seconds"), legend="{{outcome}}"),
                        ],
                        unit="s",
                    )
                    for q in _QUANTILES
                ),
                Panel(
                    title="Where the time goes, p95",
                    description="parse, reading and identifying a request; lookup, in memory and store; wait, until its"
                    " call upstream begins; upstream, that call; assemble, writing the answer.",
                    targets=[Target(expr=quantile(0.95, "stage", "stage_duration_seconds"), legend="{{stage}}")],
                    unit="s",
                    width=12,
                ),
                Panel(
                    title="Hits slower than 100 ms",
                    description="The objective is 1 %; needs the recording rules. Above 14.4 % in both five minutes"
                    " and an hour, or 6 % in both half an hour and six hours, EmbeddingProxyHitLatencyBurn fires.",
                    targets=[
                        Target(
                            expr=recorded(f"job:embedding_proxy_slow_hits:ratio_rate{window}"),
                            legend=f"{{{{job}}}} {window}",
                        )
                        for window in ("5m", "30m", "1h", "6h")
                    ],
                    unit="percentunit",
                    width=12,
                    steps=[(None, GREEN), (0.01, YELLOW), (0.06, ORANGE), (0.144, RED)],
                ),
            ],
            "What is not cached": [
                Panel(
                    title="Bypasses by reason",
                    description="Requests relayed unread, by what made their meaning uncertain: a field or a form of"
                    " input that the proxy does not know, empty texts, remote images. Of all models.",
                    targets=[Target(expr=total("reason", "bypasses_total"), legend="{{reason}}")],
                    unit="reqps",
                    is_stacked=True,
                ),
                Panel(
                    title="Share of bypasses",
                    description="Of all requests of a job, over a quarter of an hour and over a day; needs the"
                    " recording rules. The alert EmbeddingProxyBypassSpike compares these two.",
                    targets=[
                        Target(
                            expr=recorded(f"job:embedding_proxy_bypasses:ratio_rate{window}"),
                            legend=f"{{{{job}}}} {window}",
                        )
                        for window in ("15m", "1d")
                    ],
                    unit="percentunit",
                    steps=_ERROR_STEPS,
                ),
                Panel(
                    title="Errors by model and status",
                    description="499: the client left before its answer. 503: a limit was reached, or it drains. 200:"
                    " an answer that did not check out and was passed on.",
                    targets=[
                        Target(
                            expr=total("model, status", "requests_total", 'outcome="error"', by_model=True),
                            legend="{{model}} {{status}}",
                        )
                    ],
                    unit="reqps",
                    is_stacked=True,
                ),
            ],
        },
    )


def _upstream() -> Dashboard:
    return Dashboard(
        name="upstream",
        title="Embedding proxy / Upstream",
        description="The embeddings APIs behind the proxy, and the calls made to them.",
        rows={
            "Answers": [
                Panel(
                    title="Answers by status",
                    description="Embeddings calls by HTTP status, or unreachable, or timeout.",
                    targets=[
                        Target(
                            expr=total("upstream, status", "upstream_answers_total"), legend="{{upstream}} {{status}}"
                        )
                    ],
                    unit="cps",
                    is_stacked=True,
                ),
                Panel(
                    title="Calls without a good answer",
                    description="429, 5xx, unreachable and timeout, of all calls to an upstream over five minutes and"
                    " all instances; needs the recording rules. The alert EmbeddingProxyUpstreamErrors looks at this.",
                    targets=[
                        Target(
                            expr=recorded("job_upstream:embedding_proxy_upstream_errors:ratio_rate5m"),
                            legend="{{upstream}}",
                        )
                    ],
                    unit="percentunit",
                    maximum=1,
                    steps=_ERROR_STEPS,
                ),
                Panel(
                    title="Errors that clients saw",
                    description="By model and status, after fallbacks; the proxy's own among them.",
                    targets=[
                        Target(
                            expr=total("model, status", "requests_total", 'outcome="error"', by_model=True),
                            legend="{{model}} {{status}}",
                        )
                    ],
                    unit="reqps",
                    is_stacked=True,
                ),
                Panel(
                    title="Fallbacks",
                    description="Calls that one upstream could not answer, by the upstream that was asked instead.",
                    targets=[Target(expr=total("upstream", "upstream_fallbacks_total"), legend="{{upstream}}")],
                    unit="cps",
                    steps=[(None, GREEN), (0.1, YELLOW)],
                ),
                Panel(
                    title="Rejected answers",
                    description="Answers with status 200 that did not check out, were passed on and not stored, by what"
                    " was wrong. Any at all says that the upstream is not what it is configured to be.",
                    targets=[Target(expr=total("reason", "upstream_rejected_total"), legend="{{reason}}")],
                    unit="cps",
                    steps=_ANY_STEPS,
                ),
                Panel(
                    title="Validations",
                    description="Questions about a credential under which only stored items were asked for: confirmed,"
                    " refused, or unknown, when the upstream gave no verdict.",
                    targets=[Target(expr=total("result", "validations_total"), legend="{{result}}")],
                    unit="cps",
                ),
                _breakers("upstream .*", "Connecting to each upstream. Open, calls fail at once or fall back."),
            ],
            "Calls": [
                Panel(
                    title="Latency",
                    description="One embeddings call, from sending it to its last byte.",
                    targets=quantiles("upstream", "upstream_duration_seconds"),
                    unit="s",
                    width=12,
                ),
                Panel(
                    title="Waiting for a call",
                    description="How long requests wait until their call begins: for the batch to gather, and for one"
                    " of --upstream-concurrency slots.",
                    targets=quantiles("", "stage_duration_seconds", 'stage="wait"'),
                    unit="s",
                    width=12,
                    steps=[(None, GREEN), (0.1, YELLOW), (1, RED)],
                ),
                Panel(
                    title="Items in a call",
                    description="Larger batches cost less time an item; what bounds them is --max-batch-items.",
                    targets=counted("upstream_batch_items"),
                    unit="short",
                ),
                Panel(
                    title="Requests merged into a call",
                    description="1 is a call for one request. More of them merge with a longer --batch-window.",
                    targets=counted("upstream_merged_requests"),
                    unit="short",
                ),
                Panel(
                    title="Items waiting for the upstream",
                    description="Handed to the batcher, and without an answer yet; at the limit (--max-queued-items)"
                    " what comes on top gets 503.",
                    targets=[
                        Target(
                            expr=f"max by (instance) ({series('upstream_queued_items')})",
                            legend="{{instance}}",
                        ),
                        Target(expr=f"min ({series('upstream_queue_limit_items')})", legend="limit of an instance"),
                    ],
                    unit="short",
                ),
                Panel(
                    title="Calls",
                    description="Embeddings calls a second by upstream that were answered at all.",
                    targets=[Target(expr=total("upstream", "upstream_duration_seconds_count"), legend="{{upstream}}")],
                    unit="cps",
                    width=12,
                ),
                Panel(
                    title="Billed tokens by model",
                    description="As the upstreams counted them.",
                    targets=[
                        Target(expr=total("model", "tokens_total", 'kind="billed"', by_model=True), legend="{{model}}")
                    ],
                    unit="cps",
                    width=12,
                    is_stacked=True,
                ),
            ],
        },
    )


def _store() -> Dashboard:
    filled = f"{series('memory_bytes')} / {series('memory_limit_bytes')}"
    return Dashboard(
        name="store",
        title="Embedding proxy / Store",
        description="SQLite or Redis, and the memory tier in front of it.",
        rows={
            "Store": [
                *(
                    Panel(
                        title=f"{operation.capitalize()} latency",
                        description=f"One {operation} of the store for one request.",
                        targets=quantiles("", "store_duration_seconds", f'operation="{operation}"'),
                        unit="s",
                        steps=[(None, GREEN), (0.02, YELLOW), (0.1, RED)],
                    )
                    for operation in ("read", "write")
                ),
                Panel(
                    title="Reads and writes",
                    description="What memory has is not looked for in the store.",
                    targets=[
                        Target(expr=total("operation", "store_duration_seconds_count"), legend="{{operation}}"),
                    ],
                    unit="ops",
                ),
                Panel(
                    title="Errors",
                    description="Reads and writes that failed or ran out of time; they cost hits, not requests. open:"
                    " not tried, because the breaker is; busy: too much at once.",
                    targets=[
                        Target(expr=total("operation, reason", "store_errors_total"), legend="{{operation}} {{reason}}")
                    ],
                    unit="ops",
                    steps=_ANY_STEPS,
                ),
                Panel(
                    title="Invalid records",
                    description="Stored values that did not check out and were taken for misses. tag: not written by a"
                    " proxy with this record key, so forged, or the key was changed; checksum: damaged.",
                    targets=[Target(expr=total("reason", "store_invalid_records_total"), legend="{{reason}}")],
                    unit="cps",
                    steps=_ANY_STEPS,
                ),
                _breakers("store_.*", "Reading and writing. Open, the proxy goes on without the store."),
            ],
            "Memory tier": [
                Panel(
                    title="Bytes",
                    description="What the memory tier holds, its own estimate, and may hold (--memory), by instance.",
                    targets=[
                        Target(expr=f"sum by (instance) ({series('memory_bytes')})", legend="{{instance}}"),
                        Target(expr=f"min ({series('memory_limit_bytes')})", legend="limit of an instance"),
                    ],
                    unit="bytes",
                ),
                Panel(
                    title="Full",
                    description="Of the limit. Full is as it should be once the cache is warm; whether it is too small"
                    " shows in the age at eviction.",
                    targets=[Target(expr=f"max by (instance) ({filled})", legend="{{instance}}")],
                    unit="percentunit",
                    kind="gauge",
                    maximum=1,
                ),
                Panel(
                    title="Entries",
                    description="Vectors in memory, by instance.",
                    targets=[Target(expr=f"sum by (instance) ({series('memory_entries')})", legend="{{instance}}")],
                    unit="short",
                ),
                Panel(
                    title="Age at eviction",
                    description="How long ago an entry was stored that leaves memory for want of room. Hours or less,"
                    " with many items from the store, say that more --memory would pay.",
                    targets=quantiles("", "memory_evicted_age_seconds", of=(0.1, 0.5, 0.9)),
                    unit="s",
                ),
                Panel(
                    title="Evictions",
                    description="Entries that left memory for want of room.",
                    targets=[
                        Target(expr=total("instance", "memory_evicted_age_seconds_count"), legend="{{instance}}"),
                    ],
                    unit="cps",
                ),
                Panel(
                    title="Hits by tier and model",
                    description="Items found in memory, and in the store.",
                    targets=[
                        Target(
                            expr=total("model, result", "items_total", 'result=~"memory|store"', by_model=True),
                            legend="{{model}} {{result}}",
                        )
                    ],
                    unit="cps",
                    is_stacked=True,
                ),
            ],
        },
    )


def _fleet() -> Dashboard:
    held = f"{series('held_request_bytes')} / {series('held_request_limit_bytes')}"
    queued = f"{series('upstream_queued_items')} / {series('upstream_queue_limit_items')}"
    return Dashboard(
        name="fleet",
        title="Embedding proxy / Fleet",
        description="The instances beside each other: which one is not like the others.",
        rows={
            "Instances": [
                Panel(
                    title="Up",
                    description="Whether the last scrape of an instance worked.",
                    targets=[
                        Target(expr='up{job=~"$job", instance=~"$instance"}', legend="{{instance}}"),
                    ],
                    unit="bool_yes_no",
                    kind="stat",
                    steps=[(None, RED), (1, GREEN)],
                    width=12,
                ),
                Panel(
                    title="Versions",
                    description="Of the proxy and of Python. More than one after a rollout is an instance left behind.",
                    targets=[
                        Target(
                            expr=f"count by (instance, version, python) ({series('build_info')})",
                            is_instant=True,
                        )
                    ],
                    unit="none",
                    kind="table",
                    width=12,
                ),
            ],
            "Requests": [
                Panel(
                    title="Requests",
                    description="On the embeddings route.",
                    targets=[Target(expr=total("instance", "requests_total", by_model=True), legend="{{instance}}")],
                    unit="reqps",
                ),
                Panel(
                    title="Hit rate by item",
                    description="Of all input items, those that were not asked of an upstream.",
                    targets=[Target(expr=hit_rate_by_item(by="instance"), legend="{{instance}}")],
                    unit="percentunit",
                    maximum=1,
                    steps=_HIT_STEPS,
                ),
                Panel(
                    title="Latency p99",
                    description="Of all outcomes and models, over five minutes; needs the recording rules.",
                    targets=[
                        Target(
                            expr=recorded(
                                "instance:embedding_proxy_request_duration_seconds:p99_rate5m", with_instance=True
                            ),
                            legend="{{instance}}",
                        )
                    ],
                    unit="s",
                ),
                Panel(
                    title="Errors",
                    description="Requests answered with an error.",
                    targets=[
                        Target(
                            expr=total("instance, status", "requests_total", 'outcome="error"', by_model=True),
                            legend="{{instance}} {{status}}",
                        )
                    ],
                    unit="reqps",
                ),
                Panel(
                    title="In flight",
                    description="Requests on the embeddings route under way.",
                    targets=[
                        Target(expr=f"sum by (instance) ({series('requests_in_flight')})", legend="{{instance}}"),
                    ],
                    unit="short",
                ),
                Panel(
                    title="Items waiting for the upstream, of the limit",
                    description="At 100 % what comes on top gets 503 (--max-queued-items).",
                    targets=[Target(expr=f"max by (instance) ({queued})", legend="{{instance}}")],
                    unit="percentunit",
                    maximum=1,
                    steps=_FULL_STEPS,
                ),
            ],
            "Process": [
                Panel(
                    title="Request bodies in memory",
                    description="Bytes held until their requests are answered.",
                    targets=[
                        Target(expr=f"sum by (instance) ({series('held_request_bytes')})", legend="{{instance}}"),
                    ],
                    unit="bytes",
                ),
                Panel(
                    title="Request bodies in memory, of the limit",
                    description="At 100 % what comes on top gets 503 (--max-held).",
                    targets=[Target(expr=f"max by (instance) ({held})", legend="{{instance}}")],
                    unit="percentunit",
                    maximum=1,
                    steps=_FULL_STEPS,
                ),
                Panel(
                    title="Event loop lag p99",
                    description="How late the event loop comes to what is due; every request waits so long at each of"
                    " its steps. More than 100 ms is a machine, or an instance, with too much to do.",
                    targets=[
                        Target(expr=quantile(0.99, "instance", "event_loop_lag_seconds"), legend="{{instance}}"),
                    ],
                    unit="s",
                    steps=_LAG_STEPS,
                ),
            ],
        },
    )


def _stat(
    title: str, description: str, expr: str, unit: str, steps: Steps = _PLAIN, *, decimals: int | None = None
) -> Panel:
    target = Target(expr=expr, legend=title, is_instant=True)
    return Panel(
        title=title,
        description=description,
        targets=[target],
        unit=unit,
        kind="stat",
        width=4,
        height=5,
        steps=steps,
        decimals=decimals,
    )


def _breakers(circuits: str, description: str) -> Panel:
    state = series("breaker_state", f'circuit=~"{circuits}"')
    return Panel(
        title="Circuit breakers",
        description=description,
        targets=[
            Target(
                expr=f"max by (instance, circuit) ({state})",
                legend="{{instance}} {{circuit}}",
            )
        ],
        unit="none",
        kind="state-timeline",
        steps=[(None, GREEN), (1, YELLOW), (2, RED)],
    )


DASHBOARDS = [_overview(), _upstream(), _store(), _fleet()]


# --- JSON


def variables(dashboard: Dashboard) -> list[dict[str, Any]]:
    def chosen(name: str, label: str, query: str) -> dict[str, Any]:
        return {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": _DATASOURCE,
            "definition": query,
            "query": {"query": query, "refId": f"variable-{name}"},
            "refresh": 2,  # when the time range changes, too: an instance may be gone by now
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "hide": 0,
        }

    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "regex": "",
            "multi": False,
            "includeAll": False,
            "hide": 0,
        },
        chosen("job", "Job", "label_values(embedding_proxy_build_info, job)"),
        chosen("instance", "Instance", 'label_values(embedding_proxy_build_info{job=~"$job"}, instance)'),
        chosen("model", "Model", 'label_values(embedding_proxy_items_total{job=~"$job"}, model)'),
    ]


def as_json(dashboard: Dashboard) -> dict[str, Any]:
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["embedding-proxy"],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {},
        "fiscalYearStartMonth": 0,
        "weekStart": "",
        "links": [
            {
                "type": "dashboards",
                "title": "Embedding proxy",
                "tags": ["embedding-proxy"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "annotations": {"list": []},
        "templating": {"list": variables(dashboard)},
        "panels": list(_placed(dashboard)),
    }


def _placed(dashboard: Dashboard) -> Iterable[dict[str, Any]]:
    """The panels in their places, each row of the grid filled from the left."""
    number, y = 0, 0
    for title, panels in dashboard.rows.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
            "panels": [],
        }
        x, y, height = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > _COLUMNS:
                x, y, height = 0, y + height, 0
            number += 1
            yield _panel(number, panel) | {"gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height}}
            x, height = x + panel.width, max(height, panel.height)
        y += height


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    steps = [{"value": value, "color": colour} for value, colour in panel.steps]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": _mappings(panel.kind),
        "custom": _drawing(panel),
    }
    if panel.unit not in {"none", "short"} or panel.kind != "timeseries":
        defaults["min"] = 0
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "targets": [_target(ref, target, panel.kind) for ref, target in zip("ABCDEFGH", panel.targets, strict=False)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
    } | _transformed(panel.kind)


def _target(ref: str, target: Target, kind: str) -> dict[str, Any]:
    return {
        "refId": ref,
        "datasource": _DATASOURCE,
        "editorMode": "code",
        "expr": target.expr,
        "legendFormat": target.legend,
        "instant": target.is_instant,
        "range": not target.is_instant,
        "format": "table" if kind == "table" else "time_series",
    }


def _mappings(kind: str) -> list[dict[str, Any]]:
    if kind != "state-timeline":
        return []
    states = {str(value): {"text": text, "color": colour} for value, (text, colour) in _BREAKER_STATES.items()}
    return [{"type": "value", "options": states}]


def _drawing(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case "timeseries":
            return {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 30 if panel.is_stacked else 0,
                "showPoints": "never",
                "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "off" if len(panel.steps) == 1 else "dashed"},
            }
        case "state-timeline":
            return {"lineWidth": 0, "fillOpacity": 80}
        case "table":
            return {"align": "auto", "cellOptions": {"type": "auto"}}
    return {}


def _options(panel: Panel) -> dict[str, Any]:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    match panel.kind:
        case "timeseries":
            return {
                "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["mean", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "stat":
            return {"reduceOptions": last, "colorMode": "value", "graphMode": "none", "textMode": "auto"}
        case "bargauge":
            return {"reduceOptions": last, "orientation": "horizontal", "displayMode": "basic", "showUnfilled": True}
        case "gauge":
            return {"reduceOptions": last, "showThresholdLabels": False, "showThresholdMarkers": True}
        case "state-timeline":
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "showValue": "auto",
                "mergeValues": True,
                "rowHeight": 0.8,
            }
    return {"showHeader": True}


def _transformed(kind: str) -> dict[str, Any]:
    if kind != "table":
        return {}
    return {"transformations": [{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}]}


def text_of(dashboard: Dashboard) -> str:
    return json.dumps(as_json(dashboard), indent=1) + "\n"


def main() -> None:
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.name}.json").write_text(text_of(dashboard), encoding="utf-8")


if __name__ == "__main__":
    main()
