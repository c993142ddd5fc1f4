"""A request that has ended, for `embedding-proxy explain --last` (pure)."""

from msgspec import Struct

MAX_REQUESTS = 256  # that are remembered


class RequestDetail(Struct, frozen=True, kw_only=True, gc=False):
    """How the proxy understood a request on the embeddings route.

    ``keyed`` is "items", "body" or "nothing". ``reason`` says why it is not "items", and ``field`` what that is about.
    """

    upstream: str
    provider: str
    keyed: str
    reason: str | None
    field: str | None
    credential_headers: tuple[str, ...]
    vector_headers: tuple[str, ...]
    cache_control: str  # the request's directives


class RecentRequest(Struct, frozen=True, kw_only=True, gc=False):
    """``detail`` is None for other routes, for requests that could not be read, and for hits of the fast path.
    ``cache_status`` is the proxy's part of the response's Cache-Status field."""

    ended_at_s: float  # Unix time
    request_id: str
    trace_id: str | None
    outcome: str
    status: int
    model: str | None
    items: int
    cached: int
    duration_ms: float
    rate_limit_wait_ms: float
    cache_status: str
    detail: RequestDetail | None
