"""The metrics of a proxy's processes: how many run (pure)."""

from proxy.telemetry.definitions import Definition

WORKERS_RUNNING = Definition(
    "embedding_proxy_workers_running", "Worker processes that responded to this scrape; 1 without --workers."
)
WORKERS_CONFIGURED = Definition("embedding_proxy_workers_configured", "Worker processes that --workers asks for.")
WORKERS_ENDED = Definition(
    "embedding_proxy_workers_ended",
    "Worker processes that ended after they had started, for whatever reason. The proxy starts each one again.",
)
