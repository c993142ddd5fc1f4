"""The embeddings APIs behind the proxy, and the calls made to them."""

from grafana.source.panels import ERROR_STEPS, GREEN, RED, YELLOW, Dashboard, Panel, breakers
from grafana.source.promql import counted, each_instance, quantiles, recorded, series, totals

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
        "By model and status, after fallbacks; the proxy's own among them.",
        totals("model, status", "requests_total", 'outcome="error"', by_model=True),
        "reqps",
        is_stacked=True,
    ),
    Panel(
        "Fallbacks",
        "Calls that one upstream could not answer, by the upstream that was asked instead.",
        totals("upstream", "upstream_fallbacks_total"),
        "cps",
    ),
    Panel(
        "Rejected answers",
        "Answers with status 200 that did not check out and were not stored, by what was wrong. error-in-200 is the"
        " upstream's own error; any other says that the upstream is not what it is configured to be.",
        totals("reason", "upstream_rejected_total"),
        "cps",
    ),
    Panel(
        "Validations",
        "Questions to an upstream about a credential that was not validated recently: confirmed, refused, or unknown,"
        " when it gave no verdict. One question serves all requests that wait for its answer.",
        totals("result", "validations_total"),
        "cps",
    ),
    breakers("upstream .*", "Connecting to each upstream. Open, calls fail at once or fall back.", width=24, height=6),
]

_CALLS = [
    Panel(
        "Latency",
        "One embeddings call, from sending it to its last byte.",
        quantiles("upstream", "upstream_duration_seconds"),
        "s",
        width=12,
    ),
    Panel(
        "Waiting for a call",
        "Until a call begins: wait, for the batch to gather; slot, for one of --upstream-concurrency calls, of which"
        " one credential never has more than half.",
        quantiles("stage", "stage_duration_seconds", 'stage=~"wait|slot"', of=(0.5, 0.95)),
        "s",
        width=12,
        steps=[(None, GREEN), (0.1, YELLOW), (1, RED)],
    ),
    Panel(
        "Items in a call",
        "Larger batches cost less time an item; what bounds them is --max-batch-items.",
        counted("upstream_batch_items"),
        "short",
    ),
    Panel(
        "Requests merged into a call",
        "1 is a call for one request. More of them merge with a longer --batch-window.",
        counted("upstream_merged_requests"),
        "short",
    ),
    Panel(
        "Items waiting for the upstream",
        "Handed to the batcher, and without an answer yet; at the limit (--max-queued-items) what comes on top gets"
        " 503: the Fleet dashboard has how near that is.",
        each_instance(series("upstream_queued_items")),
        "short",
    ),
    Panel(
        "Calls",
        "Embeddings calls a second by upstream that were answered at all.",
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
    rows={"Answers": _ANSWERS, "Calls": _CALLS},
)
