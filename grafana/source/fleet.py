"""The instances side by side, to find the one that differs."""

from grafana.source.panels import ANY_STEPS, DELAY_STEPS_S, FULL_STEPS, GREEN, HIT_STEPS, RED, Dashboard, Panel
from grafana.source.promql import SHOWN, each_instance, hit_rate_by_item, quantile, recorded, series, total, totals, up

_INSTANCES = [
    Panel(
        "Up",
        "Whether the last scrape worked, of every instance that was up within a day.",
        {"{{instance}}": up()},
        "bool_yes_no",
        kind="stat",
        steps=[(None, RED), (1, GREEN)],
        width=12,
        height=6,
    ),
    Panel(
        "Versions",
        "Of the proxy and of Python. More than one after a rollout means that an instance was not updated.",
        {"__auto": f"count by (instance, version, python) ({series('build_info')})"},
        "none",
        kind="table",
        width=12,
        height=6,
    ),
]

_REQUESTS = [
    Panel(
        "Requests",
        "On the embeddings route.",
        totals("instance", "requests_total", by_model=True),
        "reqps",
    ),
    Panel(
        "Hit rate by item",
        "Of all input items, those that were not fetched from an upstream.",
        {"{{instance}}": hit_rate_by_item(by="instance")},
        "percentunit",
        maximum=1,
        steps=HIT_STEPS,
    ),
    Panel(
        "Latency p99",
        "Of all outcomes and models, over five minutes; needs the recording rules.",
        {"{{instance}}": recorded("instance:embedding_proxy_request_duration_seconds:p99_rate5m", with_instance=True)},
        "s",
    ),
    Panel(
        "Errors",
        "Requests that ended with an error.",
        totals("instance, status", "requests_total", 'outcome="error"', by_model=True),
        "reqps",
    ),
    Panel(
        "In flight",
        "Requests on the embeddings route in progress.",
        each_instance(series("requests_in_flight")),
        "short",
    ),
    Panel(
        "Items waiting for the upstream, of the limit",
        "At 100 % further requests get 503 (--max-queued-items).",
        each_instance(f"{series('upstream_queued_items')} / {series('upstream_queue_limit_items')}"),
        "percentunit",
        maximum=1,
        steps=FULL_STEPS,
    ),
]

_PROCESS = [
    Panel(
        "Workers",
        "Worker processes that run, and that --workers asks for. A worker that can't start again is tried every five"
        " seconds; the log says why.",
        {
            "{{instance}} running": f"max by (instance) ({series('workers_running')})",
            "{{instance}} configured": f"max by (instance) ({series('workers_configured')})",
        },
        "short",
    ),
    Panel(
        "Workers that ended",
        "In the time shown. Each one is started again.",
        {"{{instance}}": total("instance", "workers_ended_total", window=SHOWN)},
        "short",
        kind="stat",
        steps=ANY_STEPS,
    ),
    Panel(
        "Files that can't be read again",
        "1: the certificates of an upstream, or the client keys, could not be used after a change. The proxy goes on"
        " with what it read before; the log says why.",
        {"{{instance}} {{files}}": f"max by (instance, files) ({series('reload_failed')})"},
        "short",
        maximum=1,
    ),
    Panel(
        "Log lines lost",
        "Lines per second that could not be written: the disk is full, or nobody reads the log.",
        totals("instance", "log_lines_lost_total"),
        "short",
    ),
    Panel(
        "Request bodies in memory",
        "Bytes held until their requests have a response.",
        each_instance(series("held_request_bytes")),
        "bytes",
    ),
    Panel(
        "Request bodies in memory, of the limit",
        "At 100 % further requests get 503 (--max-held).",
        each_instance(f"{series('held_request_bytes')} / {series('held_request_limit_bytes')}"),
        "percentunit",
        maximum=1,
        steps=FULL_STEPS,
    ),
    Panel(
        "Event loop lag p99",
        "How late the event loop runs what is due; every request is delayed by this at each of its steps. Above 100 ms"
        " the machine or the instance is overloaded.",
        {"{{instance}}": quantile(0.99, "instance", "event_loop_lag_seconds")},
        "s",
        steps=DELAY_STEPS_S,
    ),
]

FLEET = Dashboard(
    name="fleet",
    title="Embedding proxy / Fleet",
    description="The instances side by side, to find the one that differs.",
    rows={"Instances": _INSTANCES, "Requests": _REQUESTS, "Process": _PROCESS},
)
