"""Understood requests without a client."""

from typing import Any

import orjson

from proxy.fetch.request import ClientRequest
from proxy.protocol import embedding_request
from proxy.protocol.providers import GENERIC
from proxy.protocol.response_spec import ResponseSpec


def client_request_for(items: list[str], keys: list[bytes]) -> ClientRequest:
    """A request for ``items`` that have these ``keys``. Its other attributes are not set."""
    fields = {"model": "m", "input": items}
    parsed = embedding_request.parse_request(orjson.dumps(fields), fields, GENERIC)
    nothing: Any = None
    return ClientRequest(
        parsed=parsed,
        spec=ResponseSpec("m", parsed.encoding, keys),
        origin=nothing,
        target="/v1/embeddings",
        url="http://upstream/v1/embeddings",
        received=nothing,
        directives=nothing,
        identity=nothing,
        credential_id=nothing,
        credential_scope=nothing,
        reservation=nothing,
        span=nothing,
    )
