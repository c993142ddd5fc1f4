"""SQLite or Redis, and the memory tier in front of it."""

from grafana.source.panels import DELAY_STEPS_S, Dashboard, Panel, breakers
from grafana.source.promql import each_instance, quantiles, series, totals

_STORE = [
    *(
        Panel(
            f"{operation.capitalize()} latency",
            f"One {operation} of the store for one request.",
            quantiles("", "store_duration_seconds", f'operation="{operation}"'),
            "s",
            steps=DELAY_STEPS_S,
        )
        for operation in ("read", "write")
    ),
    Panel(
        "Reads and writes",
        "What memory has is not looked for in the store.",
        totals("operation", "store_duration_seconds_count"),
        "ops",
    ),
    Panel(
        "Errors",
        "Reads and writes that failed or ran out of time; they cost hits, not requests. open: not tried, because the"
        " breaker is; busy: too much at once.",
        totals("operation, reason", "store_errors_total"),
        "ops",
    ),
    Panel(
        "Pending writes",
        "Records that were handed to the store and are not written yet, by instance. Above 64 MiB, calls upstream wait"
        " until the store catches up.",
        each_instance(series("store_pending_write_bytes")),
        "bytes",
    ),
    Panel(
        "Items not stored",
        "Items that an upstream has answered and that were not written to the store, by reason. They stay in memory"
        " until it evicts them, and are written when they are asked for again and the store works.",
        totals("reason", "store_unstored_items_total"),
        "cps",
    ),
    Panel(
        "Invalid records",
        "Stored values that are invalid and treated as misses, each counted once until it is replaced. untagged,"
        " other-key: from before the record key was set or changed; the rates show how much is left to replace. tag,"
        " key: forged. checksum: damaged.",
        totals("reason", "store_invalid_records_total"),
        "cps",
    ),
    breakers("store_.*", "Reading and writing. Open, the proxy goes on without the store."),
]

_MEMORY_TIER = [
    Panel(
        "Bytes",
        "What the memory tier holds, its own estimate, and may hold (--memory), by instance.",
        each_instance(series("memory_bytes")) | {"limit of an instance": f"min ({series('memory_limit_bytes')})"},
        "bytes",
    ),
    Panel(
        "Full",
        "Of the limit. Full is as it should be once the cache is warm; whether it is too small shows in the age at"
        " eviction.",
        each_instance(f"{series('memory_bytes')} / {series('memory_limit_bytes')}"),
        "percentunit",
        kind="bargauge",
        maximum=1,
    ),
    Panel(
        "Entries",
        "Vectors in memory, by instance.",
        each_instance(series("memory_entries")),
        "short",
    ),
    Panel(
        "Age at eviction",
        "How long ago an entry was stored that leaves memory for want of room. Hours or less, with many items from the"
        " store, say that more --memory would pay.",
        quantiles("", "memory_evicted_age_seconds", of=(0.1, 0.5, 0.9)),
        "s",
    ),
    Panel(
        "Evictions",
        "Entries that left memory for want of room.",
        totals("instance", "memory_evicted_age_seconds_count"),
        "cps",
    ),
    Panel(
        "Hits by tier and model",
        "Items found in memory, and in the store.",
        totals("model, result", "items_total", 'result=~"memory|store"', by_model=True),
        "cps",
        is_stacked=True,
    ),
]

STORE = Dashboard(
    name="store",
    title="Embedding proxy / Store",
    description="SQLite or Redis, and the memory tier in front of it.",
    rows={"Store": _STORE, "Memory tier": _MEMORY_TIER},
)
