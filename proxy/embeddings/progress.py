"""What is known of one request under way, for its metrics, its line of log and its span."""

from proxy.access.access import Admission
from proxy.embeddings.recognized import FastPathHit
from proxy.labels import RequestOutcome
from proxy.ledger.cause import Why
from proxy.telemetry.recent_request import RequestDetail
from proxy.telemetry.tracing import NO_SPAN, Span
from proxy.upstream.router import Origin

_ADMISSION = Admission()


class Progress:
    __slots__ = (
        "admission",
        "cache_status",
        "cached",
        "client",
        "client_label",
        "detail",
        "held_s",
        "items",
        "model",
        "model_label",
        "origin",
        "outcome",
        "request_id",
        "span",
        "why",
    )

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.origin: Origin | None = None
        self.admission = _ADMISSION
        self.client: str | None = None  # for the ledger
        self.client_label: str | None = None  # as it may be logged, once the request has ended
        self.outcome = RequestOutcome.ERROR
        self.model: str | None = None  # as the client named it: only for looking up what is counted for it
        self.model_label: str | None = None  # as it may be logged, once the request has ended
        self.items = 0
        self.cached = 0  # of the items
        self.held_s = 0.0  # for the upstream's rate limit
        self.span: Span = NO_SPAN
        self.why: Why | None = None  # why it is no hit
        # Of a request that was parsed.
        self.detail: RequestDetail | None = None
        self.cache_status = ""

    def hit(self, repeat: FastPathHit) -> None:
        """The fast path has the response."""
        self.outcome = RequestOutcome.HIT
        known = repeat.known
        self.origin = known.origin
        self.model = known.spec.model
        self.client_label = known.row.client
        self.items = self.cached = len(known.spec.keys)
        self.span.looked_up(repeat.looked_up_s, items=self.items, cached=self.cached)
