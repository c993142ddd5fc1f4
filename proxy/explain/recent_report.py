"""Why the last requests hit, missed or were relayed (pure)."""

from typing import NamedTuple

from proxy.labels import BypassReason, RequestOutcome
from proxy.ledger.cause import Cause
from proxy.protocol.bypass import EXPLANATIONS
from proxy.telemetry.recent_request import RecentRequest, RequestDetail

_OUTCOMES = {
    RequestOutcome.HIT: "all items were cached",
    RequestOutcome.MISS: "no item was cached",
    RequestOutcome.BYPASS: "relayed as it came",
    RequestOutcome.PASS: "it is not the cached route, so it was passed through",
    RequestOutcome.PREFLIGHT: "a CORS preflight",
}
# What `detail` of Cache-Status says.
_DETAILS = {
    "detail=validated": "the credential was validated with one item first",
    "detail=unvalidated": "the upstream did not respond, so the credential was not validated again",
}


class RecentReport(NamedTuple):
    why: str
    advice: str | None


def report_recent(request: RecentRequest) -> RecentReport:
    detail = request.detail
    reason = None if detail is None or detail.reason is None else BypassReason(detail.reason)
    advice = None
    if detail is not None and reason is not None:
        advice = Cause.of(reason, detail.field or "").remedy(detail.provider)
    return RecentReport("; ".join([_why(request), *_circumstances(request, reason)]), advice)


def _why(request: RecentRequest) -> str:
    if request.outcome == RequestOutcome.PARTIAL:
        return f"{request.cached} of {request.items} items were cached"
    if request.outcome == RequestOutcome.ERROR:
        return f"it failed with {request.status}"
    if request.outcome == RequestOutcome.HIT and request.detail is None:
        return "all items were in memory, for a request like others before it"
    return _OUTCOMES[RequestOutcome(request.outcome)]


def _circumstances(request: RecentRequest, reason: BypassReason | None) -> list[str]:
    found = [text for mark, text in _DETAILS.items() if mark in request.cache_status]
    if "collapsed" in request.cache_status:
        found.append("it joined the fetch of another request")
    if request.rate_limit_wait_ms:
        found.append(f"it waited {request.rate_limit_wait_ms:,.0f} ms for the upstream's rate limit")
    if request.detail is not None:
        found += _of_detail(request.detail, reason)
    return found


def _of_detail(detail: RequestDetail, reason: BypassReason | None) -> list[str]:
    found = []
    if detail.cache_control:
        found.append(f"Cache-Control: {detail.cache_control}")
    if reason is not None:
        about = f" ({detail.field})" if detail.field else ""
        keyed = "keyed by its whole body" if detail.keyed == "body" else "not cached"
        found.append(f"{keyed} because of {reason.value}{about}: {EXPLANATIONS[reason]}")
    if detail.vector_headers:
        found.append(f"header fields in the key besides the credential: {', '.join(detail.vector_headers)}")
    return found
