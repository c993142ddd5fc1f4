"""The embeddings APIs behind the proxy, and the calls made to them."""

from grafana.source.canary import CANARY
from grafana.source.panels import ERROR_STEPS, GREEN, RED, YELLOW, Dashboard, Panel, breakers
from grafana.source.promql import counted, each_instance, each_model_of_an_upstream, quantiles, recorded, series, totals

_ANSWERS = [
    Panel(
        "Answers by status",
        "Embeddings calls by HTTP status, that of the error where a 200 is one; or unreachable, or timeout. Requests"
        " that are relayed unread are not included: see the Overview dashboard.",
        totals("upstream, status", "upstream_answers_total"),
        "cps",
        is_stacked=True,
    ),
    Panel(
        "Calls without a good answer",
        "429, 5xx, unreachable and timeout, of all calls to an upstream over five minutes and all instances; needs the"
        " recording rules. The alert EmbeddingProxyUpstreamErrors looks at this.",
        {"{{upstream}}": recorded("job_upstream:embedding_proxy_upstream_errors:ratio_rate5m")},
        "percentunit",
        steps=ERROR_STEPS,
    ),
    Panel(
        "Errors that clients saw",
        "By model and status, after fallbacks; includes the proxy's own errors.",
        totals("model, status", "requests_total", 'outcome="error"', by_model=True),
        "reqps",
        is_stacked=True,
    ),
    Panel(
        "Fallbacks",
        "Calls to a fallback in place of an upstream that failed, by fallback.",
        totals("upstream", "upstream_fallbacks_total"),
        "cps",
    ),
    Panel(
        "Rejected answers",
        "Responses with status 200 that were invalid and not stored, by what was wrong. error-in-200 is the upstream's"
        " own error; any other reason means that the upstream is not what it is configured to be.",
        totals("reason", "upstream_rejected_total"),
        "cps",
    ),
    Panel(
        "Validations",
        "Validations of a credential that the upstream had not accepted recently: confirmed, refused, or unknown, when"
        " the upstream gave no verdict. One validation serves all requests that wait for it.",
        totals("result", "validations_total"),
        "cps",
    ),
    breakers(
        "upstream .*",
        "Of connections to each upstream. While it is open, calls fail at once or go to a fallback.",
        width=24,
        height=6,
    ),
]

_CALLS = [
    Panel(
        "Latency",
        "One embeddings call, from sending it to the last byte of its response.",
        quantiles("upstream", "upstream_duration_seconds"),
        "s",
        width=12,
    ),
    Panel(
        "Waiting for a call",
        "Until a call begins: wait, while the batch gathers; slot, for the limit of --upstream-concurrency calls, of"
        " which one credential never gets more than half.",
        quantiles("stage", "stage_duration_seconds", 'stage=~"wait|slot"', of=(0.5, 0.95)),
        "s",
        width=12,
        steps=[(None, GREEN), (0.1, YELLOW), (1, RED)],
    ),
    Panel(
        "Items in a call",
        "Larger batches take less time per item; --max-batch-items limits them.",
        counted("upstream_batch_items"),
        "short",
    ),
    Panel(
        "Requests merged into a call",
        "1 is a call for one request. With a longer --batch-window more requests merge.",
        counted("upstream_merged_requests"),
        "short",
    ),
    Panel(
        "Items waiting for the upstream",
        "Items handed to the batcher that have no response yet. At the limit (--max-queued-items) further requests get"
        " 503; the Fleet dashboard shows how close that is.",
        each_instance(series("upstream_queued_items")),
        "short",
    ),
    Panel(
        "Held by rate limits",
        "Items that wait for an upstream's rate limit, up to --rate-limit-wait. They are sent when it allows them.",
        each_instance(series("upstream_rate_limited_items")),
        "short",
    ),
    Panel(
        "Wait for rate limits",
        "How long requests waited for an upstream's rate limit, each time until they were sent or given up.",
        quantiles("instance", "upstream_rate_limit_wait_seconds", of=(0.5, 0.95)),
        "s",
    ),
    Panel(
        "Held by the upstream's limit for",
        "For how long requests have waited for a rate limit without a pause: the longest of all instances.",
        each_model_of_an_upstream("max", "upstream_rate_limit_held_seconds"),
        "s",
    ),
    Panel(
        "Known rate limits",
        "Calls per second that the proxy sends at most, by what the upstream states or refuses: the sum of all"
        " instances and credentials.",
        each_model_of_an_upstream("sum", "upstream_rate_limit_calls_per_second"),
        "cps",
    ),
    Panel(
        "Calls refused by rate limits",
        "Calls per second that an upstream refused for its limits or its load; their requests wait.",
        totals("upstream", "upstream_rate_limit_refusals_total"),
        "cps",
    ),
    Panel(
        "Requests that waited in vain",
        "Requests per second that got an upstream's refusal, because its rate limit held them for longer than"
        " --rate-limit-wait or than their client waits.",
        totals("upstream", "upstream_rate_limit_given_up_total"),
        "reqps",
    ),
    Panel(
        "Calls",
        "Embeddings calls per second that got a response, by upstream.",
        totals("upstream", "upstream_duration_seconds_count"),
        "cps",
        width=12,
    ),
    Panel(
        "Billed tokens by model",
        "As the upstreams counted them.",
        totals("model", "tokens_total", 'kind="billed"', by_model=True),
        "cps",
        width=12,
        is_stacked=True,
    ),
]

UPSTREAM = Dashboard(
    name="upstream",
    title="Embedding proxy / Upstream",
    description="The embeddings APIs behind the proxy, and the calls made to them.",
    rows={"Answers": _ANSWERS, "Calls": _CALLS, "Drift": CANARY},
)
