"""The embeddings APIs behind the proxy, and the calls made to them."""

from grafana.source.panels import ERROR_STEPS, GREEN, RED, YELLOW, Dashboard, Panel, breakers
from grafana.source.promql import counted, each_instance, quantiles, recorded, series, totals

_ANSWERS = [
    Panel(
        "Answers by status",
        "Embeddings calls by HTTP status, or unreachable, or timeout.",
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
        "Answers with status 200 that did not check out, were passed on and not stored, by what was wrong. Any at all"
        " says that the upstream is not what it is configured to be.",
        totals("reason", "upstream_rejected_total"),
        "cps",
    ),
    Panel(
        "Validations",
        "Questions about a credential under which only stored items were asked for: confirmed, refused, or unknown,"
        " when the upstream gave no verdict.",
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
        "How long requests wait until their call begins: for the batch to gather, and for one of --upstream-concurrency"
        " slots.",
        quantiles("", "stage_duration_seconds", 'stage="wait"'),
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
