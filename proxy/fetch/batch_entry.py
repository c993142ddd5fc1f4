"""One request's part of an upstream call."""

from dataclasses import dataclass
from typing import Any

from multidict import CIMultiDict

from proxy.access.validations import CredentialId
from proxy.budget import Tenant
from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.targets import parse_path_model
from proxy.protocol.tokens import estimated_tokens
from proxy.telemetry.tracing import NO_SPAN, Span
from proxy.upstream.router import Origin


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchEntry:
    """One caller's items of a call. Shares of equal ``group`` may travel together.

    ``group`` must determine everything a call says besides its items: origin, path, credentials, parameters, the rest.
    """

    group: bytes
    tenant: Tenant
    credential_id: CredentialId
    origin: Origin
    target: str  # of the client's request
    headers: CIMultiDict[str]
    asked: EmbeddingRequest
    items: list[Any]
    body: bytes  # asks for just these items
    may_merge: bool = True
    span: Span = NO_SPAN  # of the caller's request

    @property
    def model(self) -> str | None:
        """What metrics count it under: where the path names a deployment the body need not name a model."""
        named = parse_path_model(self.target)
        return self.asked.model or (named.name if named else None)

    @property
    def tokens(self) -> int:
        return sum(estimated_tokens(self.asked.kind, item) for item in self.items)
