"""The metrics of a proxy's processes: how many run, what they can't read again or write (pure)."""

from proxy.telemetry.definitions import Definition

WORKERS_RUNNING = Definition(
    "embedding_proxy_workers_running", "Worker processes that responded to this scrape; 1 without --workers."
)
WORKERS_CONFIGURED = Definition("embedding_proxy_workers_configured", "Worker processes that --workers asks for.")
WORKERS_ENDED = Definition(
    "embedding_proxy_workers_ended",
    "Worker processes that ended after they had started, for whatever reason. The proxy starts each one again.",
)
RELOAD_FAILED = Definition(
    "embedding_proxy_reload_failed",
    "1 if files could not be used when they were last read again, on SIGHUP or after a change: the client keys, or an"
    " upstream's certificates and authorities. The proxy goes on with what it read before.",
    ("files",),
)
LOG_LINES_LOST = Definition(
    "embedding_proxy_log_lines_lost",
    "Lines of the log, those of requests included, that could not be written: the disk is full, or nobody reads them.",
)
