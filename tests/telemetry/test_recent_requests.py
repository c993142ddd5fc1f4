"""The last requests are remembered, and no more of them."""

from proxy.labels import RequestOutcome
from proxy.telemetry.access_log import AccessLogLine
from proxy.telemetry.recent_request import MAX_REQUESTS
from proxy.telemetry.recent_requests import RecentRequests


def line(number: int) -> AccessLogLine:
    return AccessLogLine(f"id-{number}", None, RequestOutcome.HIT, 200, "m", 2, 1, 0.0125, 0.5, None, None)


def test_the_last_are_kept_in_order() -> None:
    now_s = 100.0
    recent = RecentRequests(lambda: now_s)
    assert recent.last(5) == []
    for number in range(MAX_REQUESTS + 10):
        recent.add(line(number), "hit", None)
    assert len(recent.last(10**6)) == MAX_REQUESTS
    found = recent.last(3)
    assert [request.request_id for request in found] == [f"id-{MAX_REQUESTS + n}" for n in (7, 8, 9)]
    assert (found[0].ended_at_s, found[0].outcome, found[0].duration_ms) == (100.0, "hit", 12.5)
    assert (found[0].rate_limit_wait_ms, found[0].cache_status) == (500.0, "hit")
