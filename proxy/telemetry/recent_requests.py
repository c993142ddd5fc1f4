"""The last requests, for `embedding-proxy explain --last`: what the access log says of each, and how it was keyed.

In memory only, and bounded. Nothing here comes from a body, except names of models and fields. Of header fields with
credentials, only the names are here.
"""

from collections import deque
from collections.abc import Callable
from itertools import islice

from proxy.telemetry.access_log import AccessLogLine
from proxy.telemetry.recent_request import MAX_REQUESTS, RecentRequest, RequestDetail


class RecentRequests:
    """The last `MAX_REQUESTS` requests that have ended. ``clock`` is in Unix time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Converted only when they are read, because a whole hit takes only a few microseconds.
        self._ended: deque[tuple[float, AccessLogLine, str, RequestDetail | None]] = deque(maxlen=MAX_REQUESTS)

    def add(self, line: AccessLogLine, cache_status: str, detail: RequestDetail | None) -> None:
        self._ended.append((self._clock(), line, cache_status, detail))

    def last(self, count: int) -> list[RecentRequest]:
        """The last ``count`` requests, or fewer, in the order in which they ended."""
        newest = list(islice(reversed(self._ended), count))
        return [_value(*ended) for ended in reversed(newest)]


def _value(at_s: float, line: AccessLogLine, cache_status: str, detail: RequestDetail | None) -> RecentRequest:
    return RecentRequest(
        ended_at_s=at_s,
        request_id=line.request_id,
        trace_id=line.trace_id,
        outcome=line.outcome.value,
        status=line.status,
        model=line.model,
        items=line.items,
        cached=line.cached,
        duration_ms=round(line.duration_s * 1000, 3),
        rate_limit_wait_ms=round(line.held_s * 1000, 3),
        cache_status=cache_status,
        detail=detail,
    )
