"""What is noted of a request that has ended: the same in the access log and among the last requests."""

import time

import orjson

from proxy.embeddings.progress import Progress
from proxy.embeddings.request_log import RequestLog
from proxy.labels import RequestOutcome
from proxy.ledger.cause import Cause, Why
from proxy.telemetry.access_log import AccessLog
from proxy.telemetry.recent_requests import RecentRequests


def test_a_request_is_in_the_log_and_among_the_last() -> None:
    lines: list[str] = []
    log, recent = AccessLog(lines.append, is_json=True), RecentRequests(lambda: 1_000.0)
    progress = Progress("id-1")
    progress.outcome, progress.model_label, progress.client_label = RequestOutcome.PARTIAL, "m", "search"
    progress.items, progress.cached, progress.held_s = 3, 1, 0.25
    progress.why, progress.cache_status = Why(Cause("stream"), "curl"), "embedding-proxy; fwd=partial"
    RequestLog(log, recent).ended(progress, "trace", 200, time.perf_counter() - 60)
    log.flush()
    (line,) = map(orjson.loads, "".join(lines).splitlines())
    expected = {"request_id": "id-1", "outcome": "partial", "status": 200, "model": "m", "items": 3, "cached": 1}
    assert line | expected | {"client": "search", "reason": "stream"} == line
    assert 60_000 <= line["duration_ms"] < 120_000
    (last,) = recent.last(9)
    assert (last.request_id, last.trace_id, last.outcome, last.status) == ("id-1", "trace", "partial", 200)
    assert (last.items, last.cached, last.rate_limit_wait_ms) == (3, 1, 250)
    assert last.cache_status == "embedding-proxy; fwd=partial"
    assert last.duration_ms == line["duration_ms"]


def test_of_a_request_that_never_got_far_nothing_is_invented() -> None:
    recent = RecentRequests(lambda: 1_000.0)
    RequestLog(AccessLog(None, is_json=False), recent).ended(Progress("id-1"), None, 499, time.perf_counter())
    (last,) = recent.last(1)
    assert (last.outcome, last.model, last.items, last.cached, last.trace_id) == ("error", None, 0, 0, None)
    assert (last.cache_status, last.detail, last.rate_limit_wait_ms) == ("", None, 0)
