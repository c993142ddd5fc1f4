"""What is noted of every request on the data port when it has ended."""

import time

from proxy.embeddings.progress import Progress
from proxy.telemetry.access_log import AccessLog, AccessLogLine
from proxy.telemetry.recent_requests import RecentRequests


class RequestLog:
    def __init__(self, log: AccessLog, recent: RecentRequests) -> None:
        self._log = log
        self._recent = recent

    def ended(self, progress: Progress, trace: str | None, status: int, started_s: float) -> None:
        """A request that began at ``started_s``, by `time.perf_counter`, in the client's or the proxy's ``trace``."""
        # Positional arguments: one is made for every request, and keywords take twice as long.
        line = AccessLogLine(
            progress.request_id,
            trace,
            progress.outcome,
            status,
            progress.model_label,
            progress.items,
            progress.cached,
            time.perf_counter() - started_s,
            progress.held_s,
            progress.client_label,
            progress.why,
        )
        self._log.add(line)
        self._recent.add(line, progress.cache_status, progress.detail)
        progress.span.end(status, progress.outcome, progress.model_label, items=progress.items, cached=progress.cached)
