"""Understood requests without a client."""

from collections.abc import Mapping
from typing import Any

import orjson
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.access.validations import Credential, CredentialId, CredentialScope
from proxy.fetch.request import ClientRequest
from proxy.http.bodies import BodyReader
from proxy.protocol import embedding_request, identities
from proxy.protocol.directives import cache_control
from proxy.protocol.providers import GENERIC
from proxy.protocol.response_spec import ResponseSpec
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import NO_SPAN
from proxy.tenant import Tenant
from proxy.upstream.router import Origin

URL = "http://upstream/v1/embeddings"
_NO_ORIGIN: Any = None


def client_request_for(
    items: list[str],
    keys: list[bytes],
    *,
    is_keyed_whole: bool = False,
    origin: Origin = _NO_ORIGIN,
    headers: Mapping[str, str] | None = None,
    target: str = "/v1/embeddings",
    credentials: bytes = b"credentials",
    **more: Any,
) -> ClientRequest:
    """A request for ``items`` that have these ``keys``; ``more`` are further members of its body."""
    fields = {"model": "m", "input": items, **more}
    parsed = embedding_request.parse_request(orjson.dumps(fields), fields, GENERIC)
    received = CIMultiDictProxy(CIMultiDict(headers or {}))
    bodies = BodyReader(Metrics(), max_bytes=10**6, max_held_bytes=10**6)
    return ClientRequest(
        parsed=parsed,
        spec=ResponseSpec("m", parsed.encoding, tuple(keys), is_keyed_whole=is_keyed_whole),
        origin=origin,
        target=target,
        url=URL,
        received=received,
        directives=cache_control(received),
        identity=identities.identity(received),
        scope=[("credential", credentials.hex())],
        credential=Credential(CredentialId(b"tenant", credentials), CredentialScope(URL, "m")),
        client=None,
        reservation=bodies.reserve(Tenant(b"tenant")),
        epoch=0,
        span=NO_SPAN,
    )
