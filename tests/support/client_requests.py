"""Understood requests without a client."""

from typing import Any

import orjson

from proxy.access.validations import CredentialId, CredentialScope
from proxy.budget import Tenant
from proxy.fetch.request import ClientRequest
from proxy.http.bodies import BodyReader
from proxy.protocol import embedding_request
from proxy.protocol.providers import GENERIC
from proxy.protocol.response_spec import ResponseSpec
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import NO_SPAN

URL = "http://upstream/v1/embeddings"


def client_request_for(items: list[str], keys: list[bytes], *, is_keyed_whole: bool = False) -> ClientRequest:
    """A request for ``items`` that have these ``keys``. It has no origin and no header fields."""
    fields = {"model": "m", "input": items}
    parsed = embedding_request.parse_request(orjson.dumps(fields), fields, GENERIC)
    nothing: Any = None
    bodies = BodyReader(Metrics(), max_bytes=10**6, max_held_bytes=10**6)
    return ClientRequest(
        parsed=parsed,
        spec=ResponseSpec("m", parsed.encoding, tuple(keys), is_keyed_whole=is_keyed_whole),
        origin=nothing,
        target="/v1/embeddings",
        url=URL,
        received=nothing,
        directives=nothing,
        identity=nothing,
        credential_id=CredentialId(b"tenant", b"credentials"),
        credential_scope=CredentialScope(URL, "m"),
        reservation=bodies.reserve(Tenant(b"tenant")),
        span=NO_SPAN,
    )
