"""Tells the operator which clients get no hits, and why: in metrics, the log line, and one warning."""

import re
from collections.abc import Hashable

from proxy.embeddings.header_watch import MANY_VALUES
from proxy.embeddings.log_once import LogOnce
from proxy.embeddings.progress import Progress
from proxy.labels import RequestOutcome
from proxy.ledger.cause import VARYING_HEADER, WRONG_PATH, Cause, Why, agent_of
from proxy.ledger.hitless import MANY_REQUESTS, Hitless
from proxy.protocol.identities import Identity
from proxy.telemetry.metrics import Metrics

# A JSON Web Token (RFC 7519 §3), or an access token of Google's.
_EXPIRING = re.compile(r"(Bearer +)?(eyJ[\w-]*\.[\w-]+\.[\w-]*|ya29\.\S+)", re.IGNORECASE | re.ASCII)
_UNJUDGED = frozenset({RequestOutcome.ERROR, RequestOutcome.PASS})


class HitlessReport:
    def __init__(self, hitless: Hitless, metrics: Metrics, log_once: LogOnce) -> None:
        self._hitless = hitless
        self._metrics = metrics
        self._log_once = log_once

    def ended(self, progress: Progress, tenant: bytes, own: Identity, user_agent: str | None) -> None:
        """A request on the embeddings route has ended, and was counted."""
        if progress.outcome is RequestOutcome.HIT:
            progress.why = None
            self._hitless.hit(tenant)
            self._hitless.hit(_program(user_agent))
            return
        cause, agent = None if progress.why is None else progress.why.cause, agent_of(user_agent)
        progress.why = Why(cause, agent)
        if cause is not None and progress.outcome is not RequestOutcome.ERROR:
            self._metrics.uncached(progress.client_label, cause, agent)
        if progress.outcome in _UNJUDGED:
            return
        if progress.cached:
            self._hitless.hit(tenant)
            self._hitless.hit(_program(user_agent))
            return
        self._warn(self._hitless.missed(tenant, cause), progress, agent)
        if any(_EXPIRING.fullmatch(value) for _, value in own.credentials):
            self._warn(self._hitless.missed_with_token(_program(user_agent), tenant), progress, agent)

    def varying_header(self, tenant: bytes, name: str) -> None:
        """The last `MANY_VALUES` misses of a client each had a new value of the header field ``name``."""
        self._hitless.missed(tenant, Cause.of(VARYING_HEADER, name), requests=0, weight=MANY_VALUES)

    def wrong_path(
        self, progress: Progress, client: str | None, tenant: bytes, path: str, user_agent: str | None
    ) -> None:
        """A request that looks like an embeddings call is passed through. ``path`` is safe to show."""
        progress.client_label = self._metrics.ledger.label_of(client)
        cause, agent = Cause(WRONG_PATH, path), agent_of(user_agent)
        progress.why = Why(cause, agent)
        self._metrics.uncached(progress.client_label, cause, agent)
        self._warn(self._hitless.missed(tenant, cause), progress, agent)

    def _warn(self, cause: Cause | None, progress: Progress, agent: str) -> None:
        if cause is None:
            return
        origin = progress.origin
        client = " ".join(filter(None, (progress.client_label, f"({agent})" if agent else ""))) or "without a name"
        self._log_once.warn(
            f"{cause}; {cause.remedy('NAME' if origin is None else origin.provider.name)}",
            f"client {client} had no hit in {MANY_REQUESTS} requests",
        )


def _program(user_agent: str | None) -> Hashable:
    return "program", agent_of(user_agent)
