"""What the cache saves, and what its clients see. The first screen shows savings, health and why something was slow."""

from collections.abc import Iterable

from grafana.source.panels import ANY_STEPS, ERROR_STEPS, GREEN, HIT_STEPS, ORANGE, RED, YELLOW, Dashboard, Panel, stat
from grafana.source.promql import (
    SHOWN,
    alerts_firing,
    breakers_not_closed,
    calls_avoided,
    errors_of_calls,
    errors_of_requests,
    errors_of_store,
    hit_rate_by_item,
    hit_rate_by_request,
    instances_down,
    quantile,
    recorded,
    saved_of_all_tokens,
    total,
    totals,
)


def _latency(*quantiles: float) -> Iterable[Panel]:
    return (
        Panel(
            f"Latency p{q * 100:g} by outcome",
            "From the last byte of the request's headers until the response is ready, on a logarithmic scale. Of all"
            " models: latency is not measured by model.",
            {"{{outcome}}": quantile(q, "outcome", "request_duration_seconds")},
            "s",
            minimum=None,
            is_logarithmic=True,
        )
        for q in quantiles
    )


_SAVED = [
    stat(
        "Hit rate by item",
        "Of all input items, those that were not fetched from an upstream: found in memory or the store, duplicate"
        " within their request, or joined to another request's fetch.",
        hit_rate_by_item(SHOWN),
        "percentunit",
        HIT_STEPS,
    ),
    stat(
        "Hit rate by request",
        "Of all requests without an error, those for which no item was fetched from an upstream.",
        hit_rate_by_request(SHOWN),
        "percentunit",
        HIT_STEPS,
    ),
    stat(
        "Saved tokens",
        "What cached, joined and duplicate items cost when they were first fetched.",
        total("", "tokens_total", 'kind="saved"', by_model=True, window=SHOWN),
        "short",
    ),
    stat(
        "Saved of all tokens",
        "Saved tokens, of saved and billed tokens: the bill without the proxy. The cost of requests that are relayed"
        " unread is not known.",
        saved_of_all_tokens(),
        "percentunit",
        HIT_STEPS,
    ),
    stat(
        "Saved money",
        "The cost of the saved tokens in the currency of [prices] in the configuration. Models without a price, and"
        " those counted as `other`, are not included; without prices there is no value.",
        total("", "cost_total", 'kind="saved"', by_model=True, window=SHOWN),
        "none",
        decimals=2,
    ),
    stat(
        "Upstream calls avoided",
        "Requests that were not relayed unread, minus the embeddings calls made for them: the effect of hits and of"
        " merging. Fallbacks, validations and split requests cost calls. Of all models: calls are not counted by"
        " model.",
        calls_avoided(SHOWN),
        "short",
    ),
]

_HEALTH = [
    stat(
        "Instances down now",
        "Instances that were up within a day and can't be scraped now. The Fleet dashboard shows which.",
        instances_down(),
        "none",
        ANY_STEPS,
    ),
    stat(
        "Alerts firing now",
        "Of the alerts for the proxy, of all instances of a job; needs the alerting rules.",
        alerts_firing(),
        "none",
        ANY_STEPS,
    ),
    stat(
        "Breakers not closed now",
        "Of upstreams and stores that get no calls because they failed. The Upstream and Store dashboards show which.",
        breakers_not_closed(),
        "none",
        ANY_STEPS,
    ),
    stat(
        "Failed requests",
        "Requests that ended with an error, relayed from the upstream or the proxy's own, of all requests.",
        errors_of_requests(),
        "percentunit",
        ERROR_STEPS,
    ),
    stat(
        "Failed upstream calls",
        "429, 5xx, unreachable and timeout, of all embeddings calls but those that are sent again when a rate limit"
        " allows it. Clients see them unless a fallback serves the same model. Of all models.",
        errors_of_calls(),
        "percentunit",
        ERROR_STEPS,
    ),
    stat(
        "Failed store operations",
        "Reads and writes; they cost hits, not requests. Of all models; no data without a store.",
        errors_of_store(),
        "percentunit",
        ERROR_STEPS,
    ),
]

_WHY_SLOW = [
    *_latency(0.95),
    Panel(
        "Where the time goes, p95",
        "parse, reading and identifying a request; lookup, in memory and store; wait, while the batch gathers; slot,"
        " for the concurrency limit; upstream, the call; assemble, writing the response. Of all models.",
        {"{{stage}}": quantile(0.95, "stage", "stage_duration_seconds")},
        "s",
    ),
    Panel(
        "Hit rate",
        "By item, and by whole requests. What is not a hit waits for the upstream.",
        {"by item": hit_rate_by_item(), "by request": hit_rate_by_request()},
        "percentunit",
        maximum=1,
        steps=HIT_STEPS,
    ),
]

_HITS = [
    Panel(
        "Hit rate by item against last week",
        "Over an hour, of all instances and models of a job; needs the recording rules. The alert"
        " EmbeddingProxyHitRateDrop compares these two.",
        {
            "{{job}}": recorded("job:embedding_proxy_item_hits:ratio_rate1h"),
            "{{job}} a week before": recorded("job:embedding_proxy_item_hits:ratio_rate1h", offset="1w"),
        },
        "percentunit",
        maximum=1,
        steps=HIT_STEPS,
    ),
    Panel(
        "Items by where their vectors came from",
        "memory, store; duplicate, within its request; joined, to another request's fetch; upstream; bypass, relayed"
        " unread.",
        totals("result", "items_total", by_model=True),
        "cps",
        is_stacked=True,
    ),
    Panel(
        "Requests by outcome",
        "hit, no item was fetched upstream; partial, some were; miss, all were; bypass, relayed unread; error.",
        totals("outcome", "requests_total", by_model=True),
        "reqps",
        is_stacked=True,
    ),
    Panel(
        "Upstream calls avoided",
        "Requests that were not relayed unread, less the calls made for them: below 0, fallbacks and validations cost"
        " more than was saved. Of all models.",
        {"avoided": calls_avoided()},
        "cps",
        minimum=None,
        width=12,
    ),
    Panel(
        "Top models",
        "Items in the time shown. Models after the fiftieth are `other`, and so are models for which the proxy has"
        " neither got a response nor found an item in its store.",
        {"{{model}}": f"topk(10, {total('model', 'items_total', by_model=True, window=SHOWN)}) > 0"},
        "short",
        kind="bargauge",
        width=12,
    ),
]

_TOKENS_AND_MONEY = [
    Panel(
        "Tokens",
        "billed, as the upstream counted them; saved, what cached, joined and duplicate items cost when they were first"
        " fetched. Requests that are relayed unread are not included.",
        totals("kind", "tokens_total", by_model=True),
        "cps",
        width=12,
    ),
    Panel(
        "Money an hour",
        "The same at the configured prices, in their currency; no data without [prices].",
        {"{{kind}}": f"3600 * {total('kind', 'cost_total', by_model=True)}"},
        "none",
        width=12,
        decimals=2,
    ),
]

_LATENCY = [
    *_latency(0.5, 0.99),
    Panel(
        "Hits slower than 100 ms",
        "The objective is 1 %; needs the recording rules. Above 14.4 % in both five minutes and an hour, or 6 % in both"
        " half an hour and six hours, EmbeddingProxyHitLatencyBurn fires.",
        {
            f"{{{{job}}}} {window}": recorded(f"job:embedding_proxy_slow_hits:ratio_rate{window}")
            for window in ("5m", "30m", "1h", "6h")
        },
        "percentunit",
        steps=[(None, GREEN), (0.01, YELLOW), (0.06, ORANGE), (0.144, RED)],
    ),
]

_WHAT_IS_NOT_CACHED = [
    Panel(
        "Bypasses by reason",
        "Requests relayed unread, by what made their meaning uncertain: streams, remote images, duplicate JSON keys. Of"
        " all models.",
        totals("reason", "bypasses_total"),
        "reqps",
        is_stacked=True,
    ),
    Panel(
        "Requests keyed as a whole, by reason",
        "Requests that hit only if the whole body is the same, by why they can't be cached item by item: an unknown"
        " field or form of input, empty texts. Of all models.",
        totals("reason", "whole_body_requests_total"),
        "reqps",
        is_stacked=True,
    ),
    Panel(
        "Share of bypasses",
        "Of all requests of a job, over a quarter of an hour and over a day; needs the recording rules. The alert"
        " EmbeddingProxyBypassSpike compares these two.",
        {
            f"{{{{job}}}} {window}": recorded(f"job:embedding_proxy_bypasses:ratio_rate{window}")
            for window in ("15m", "1d")
        },
        "percentunit",
        steps=ERROR_STEPS,
    ),
    Panel(
        "Errors by model and status",
        "499: the client left before its response was complete. 503: a limit was reached, or the proxy drains. 401"
        " also: a client whose key is not in --client-keys. 502 also: a relayed response that broke off.",
        totals("model, status", "requests_total", 'outcome="error"', by_model=True),
        "reqps",
        is_stacked=True,
    ),
    Panel(
        "Misses by a header field with ever new values",
        "The field is part of the key and had 20 values from one credential without a hit. If it does not change the"
        " vector, --neutral-headers leaves it out of the key. The alert EmbeddingProxyHeaderCostsHits looks at this.",
        totals("header", "varying_header_misses_total"),
        "reqps",
        width=16,
    ),
]

OVERVIEW = Dashboard(
    name="overview",
    title="Embedding proxy / Overview",
    description="What the cache saves, and what its clients see.",
    rows={
        "Saved, in the time shown": _SAVED,
        "Health, now and in the time shown": _HEALTH,
        "What was slow, and why": _WHY_SLOW,
        "Hits": _HITS,
        "Tokens and money": _TOKENS_AND_MONEY,
        "Latency": _LATENCY,
        "What is not cached": _WHAT_IS_NOT_CACHED,
    },
)
