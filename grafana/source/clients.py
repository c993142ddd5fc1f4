"""Who uses the proxy, what it costs, and what each client saves: with client keys or client labels only."""

from grafana.source.panels import ERROR_STEPS, FULL_STEPS, HIT_STEPS, Dashboard, Panel, stat
from grafana.source.promql import RATE, SHOWN, series, total, totals

_NEEDS = " Needs --client-keys or --client-labels-key-env."

_BYPASSES = total("", "client_requests_total", 'outcome="bypass"', window=SHOWN)

_JUDGED, _WITH_HITS = 'outcome!="error"', 'outcome=~"hit|partial"'


def _top(name: str, *labels: str) -> dict[str, str]:
    return {"{{client}}": f"topk(10, {total('client', name, *labels, window=SHOWN)}) > 0"}


def _ratio(part: str, whole: str) -> str:
    return f"{part} / ({whole} > 0)"


def _hit_rate(window: str = RATE) -> str:
    spared = total("client", "client_items_total", 'result!~"upstream|bypass"', window=window)
    return _ratio(spared, total("client", "client_items_total", window=window))


_SPENT = [
    stat(
        "Clients",
        "With a request in the time shown. All without a label of their own are one, `other`." + _NEEDS,
        f"count({total('client', 'client_requests_total', window=SHOWN)} > 0)",
        "none",
    ),
    stat(
        "Tokens billed",
        "Of all clients: what the upstream billed. Requests that were relayed unread are not included.",
        total("", "client_tokens_total", 'kind="billed"', window=SHOWN),
        "short",
    ),
    stat(
        "Tokens saved",
        "Of all clients: what cached, joined and duplicate items cost when they were first fetched.",
        total("", "client_tokens_total", 'kind="saved"', window=SHOWN),
        "short",
    ),
    stat(
        "Money billed",
        "At the configured prices, in their currency; no value without [prices].",
        total("", "client_cost_total", 'kind="billed"', window=SHOWN),
        "none",
        decimals=2,
    ),
    stat(
        "Money saved",
        "At the configured prices, in their currency; no value without [prices].",
        total("", "client_cost_total", 'kind="saved"', window=SHOWN),
        "none",
        decimals=2,
    ),
    stat(
        "Relayed unread",
        "Requests that can't be cached, of all requests. The rows below say whose, and why.",
        f"({_BYPASSES} or vector(0)) / {total('', 'client_requests_total', window=SHOWN)}",
        "percentunit",
        ERROR_STEPS,
    ),
]

_WHO = [
    Panel(
        "Tokens billed by client",
        "In the time shown. What several clients wait for is charged once, to the first of them.",
        _top("client_tokens_total", 'kind="billed"'),
        "short",
        kind="bargauge",
        height=11,
    ),
    Panel(
        "Tokens saved by client",
        "In the time shown: what the client's cached, joined and duplicate items cost when they were first fetched.",
        _top("client_tokens_total", 'kind="saved"'),
        "short",
        kind="bargauge",
        height=11,
    ),
    Panel(
        "Money billed by client",
        "In the time shown, at the configured prices and in their currency; no data without [prices].",
        _top("client_cost_total", 'kind="billed"'),
        "none",
        kind="bargauge",
        height=11,
        decimals=2,
    ),
    Panel(
        "Tokens billed over time",
        "By client.",
        totals("client", "client_tokens_total", 'kind="billed"'),
        "cps",
        is_stacked=True,
    ),
    Panel(
        "The same tokens by model",
        "Clients are not counted by model: it would be dozens of series a client.",
        totals("model", "tokens_total", 'kind="billed"', by_model=True),
        "cps",
        is_stacked=True,
    ),
    Panel(
        "Requests over time",
        "By client.",
        totals("client", "client_requests_total"),
        "reqps",
        is_stacked=True,
    ),
]

_HITS = [
    Panel(
        "Hit rate by item",
        "Of each client's items, those that were not fetched from an upstream on its behalf.",
        {"{{client}}": _hit_rate()},
        "percentunit",
        maximum=1,
        steps=HIT_STEPS,
    ),
    Panel(
        "Errors by client",
        "Requests that ended with an error, also the upstream's and those whose client left.",
        totals("client", "client_requests_total", 'outcome="error"'),
        "reqps",
    ),
    Panel(
        "Waiting for rate limits",
        "How many of the client's requests wait for an upstream's rate limit at a time, on average: seconds waited a"
        " second. Counted when a request ends.",
        totals("client", "client_rate_limit_wait_seconds_total"),
        "short",
    ),
    Panel(
        "Relayed unread, by client and reason",
        "Requests that can't be cached, by what made their meaning uncertain.",
        totals("client, reason", "client_bypasses_total"),
        "reqps",
        is_stacked=True,
        width=24,
    ),
]

_WHY_NO_HITS = [
    Panel(
        "Not cached item by item: why, which field, and by which program",
        "Relayed unread, keyed by the whole body, or on a path that is not cached (wrong-path). docs/clients.md says"
        " how to fix each reason. Also without client labels; then the client is empty.",
        totals("client, reason, field, user_agent", "uncached_requests_total"),
        "reqps",
        is_stacked=True,
        width=16,
        height=9,
    ),
    Panel(
        "Clients without a hit in the time shown",
        "Requests of clients with more than 100 and none with an item from the cache. The alert"
        " EmbeddingProxyClientWithoutHits looks at the last hour. If the proxy can tell why, its log has one warning.",
        {
            "{{client}}": f"({total('client', 'client_requests_total', _JUDGED, window=SHOWN)} > 100)"
            f" unless ({total('client', 'client_requests_total', _WITH_HITS, window=SHOWN)} > 0)"
        },
        "short",
        kind="bargauge",
        height=9,
    ),
]

_SPENT_OF = f"max by (budget, client) ({series('budget_spent')} / ({series('budget_limit')} > 0))"
_BUDGETS = [
    Panel(
        "Budgets, how full",
        "What each client has spent in the present window, of its budget. Above 80 % EmbeddingProxyBudgetNearLimit"
        " fires; at 100 % the client's misses get 429, its hits are served. Needs [budgets] in the configuration.",
        {"{{budget}} {{client}}": _SPENT_OF},
        "percentunit",
        maximum=1,
        steps=FULL_STEPS,
        width=12,
    ),
    Panel(
        "Calls refused for a budget",
        "Upstream calls that were not made because the client's budget is used up.",
        totals("budget, client", "budget_refusals_total"),
        "reqps",
    ),
    Panel(
        "Store without a reply",
        "Counts that the store did not confirm. Meanwhile each process counts by itself, or refuses calls if"
        " on_store_down is closed. What was spent is reported later.",
        {"errors": total("", "budget_store_errors_total")},
        "cps",
        width=4,
    ),
]

CLIENTS = Dashboard(
    name="clients",
    title="Embedding proxy / Clients",
    description="Who uses the proxy, what it costs, what it saves them, and who gets no hits.",
    rows={"In the time shown": _SPENT, "Who": _WHO, "Budgets": _BUDGETS, "Hits": _HITS, "Why no hits": _WHY_NO_HITS},
)
