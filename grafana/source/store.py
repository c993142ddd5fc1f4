"""SQLite or Redis, and the memory tier in front of it."""

from grafana.source.panels import DELAY_STEPS_S, Dashboard, Panel, breakers
from grafana.source.promql import each_instance, quantiles, series, totals

_STORE = [
    *(
        Panel(
            f"{operation.capitalize()} latency",
            f"One {operation} of the store, for one request or several.",
            quantiles("", "store_duration_seconds", f'operation="{operation}"'),
            "s",
            steps=DELAY_STEPS_S,
        )
        for operation in ("read", "write")
    ),
    Panel(
        "Reads and writes",
        "Items in memory are not read from the store.",
        totals("operation", "store_duration_seconds_count"),
        "ops",
    ),
    Panel(
        "Errors",
        "Reads and writes that failed or timed out; they cost hits, not requests. open: not tried, because the breaker"
        " is open; busy: too many operations at once.",
        totals("operation, reason", "store_errors_total"),
        "ops",
    ),
    Panel(
        "Pending writes",
        "Records waiting to be written to the store, by instance. Above 64 MiB, upstream calls wait until the store"
        " catches up.",
        each_instance(series("store_pending_write_bytes")),
        "bytes",
    ),
    Panel(
        "Items not stored",
        "Items that an upstream has embedded and that were not written to the store, by reason. They stay in memory"
        " until it evicts them, and are written when they are requested again and the store works.",
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
    Panel(
        "Time since changes were read",
        "Which records other processes have replaced in the store is read twice a second, by instance. Until it is"
        " read, an instance may serve the replaced ones from memory.",
        each_instance(series("store_changes_age_seconds")),
        "s",
    ),
    breakers("store_.*", "Of reads and of writes. While it is open, the proxy works without the store."),
]

_MEMORY_TIER = [
    Panel(
        "Bytes",
        "Size of the memory tier, its own estimate, and its limit (--memory), by instance.",
        each_instance(series("memory_bytes")) | {"limit of an instance": f"min ({series('memory_limit_bytes')})"},
        "bytes",
    ),
    Panel(
        "Full",
        "Of the limit. Once the cache is warm, full is normal; the age at eviction shows whether it is too small.",
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
        "Time since an entry was stored, when memory evicts it for lack of space. Hours or less, with many items from"
        " the store, mean that more --memory would help.",
        quantiles("", "memory_evicted_age_seconds", of=(0.1, 0.5, 0.9)),
        "s",
    ),
    Panel(
        "Evictions",
        "Entries that memory evicted for lack of space.",
        totals("instance", "memory_evicted_age_seconds_count"),
        "cps",
    ),
    Panel(
        "Discarded entries",
        "Entries that memory removed because the store may have another record. replaced: a process has replaced it;"
        " again: the same two seconds later, in case that process died meanwhile; missed: all entries of an instance"
        " that could not read the changes for too long; purged: an operator removes it from the store.",
        totals("reason", "memory_discarded_entries_total"),
        "cps",
    ),
    Panel(
        "Hits by tier and model",
        "Items served from memory, and from the store.",
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
