"""Requests that may be remembered for the fast path."""

from typing import NamedTuple

from aiohttp import HttpVersion11
from aiohttp.web import BaseRequest

from proxy.protocol.identities import Identity

# Requests with these fields get a response of their own. Origin is one of them: the CORS fields for it may change.
PERSONAL = ("Upgrade", "Expect", "Transfer-Encoding", "Origin")
# So do requests with these. But a known head also matches requests with other values of these fields.
IDS = ("X-Request-Id", "traceparent", "tracestate")
ID_NAMES = frozenset(map(str.lower, IDS))


class Sighting(NamedTuple):
    """A parsed request that need not be parsed when it comes again.

    ``client`` and ``access_version`` are those of its admission. ``fingerprint`` is None if its body is new.
    """

    request: BaseRequest
    own: Identity
    access_version: int
    client: str | None
    fingerprint: bytes | None


def is_plain(request: BaseRequest, own: Identity) -> bool:
    """Whether nothing about a request matters except its target, its identity and its body."""
    fields = request.headers
    return (
        fields.get("Content-Type") == "application/json"
        and "Content-Encoding" not in fields
        and "Cache-Control" not in fields
        and not own.is_signed
    )


def is_repeatable(request: BaseRequest, personal: tuple[str, ...]) -> bool:
    """Whether another request of the same bytes may get the same response, as it has no ``personal`` field."""
    return (
        request.version == HttpVersion11
        and bool(request.keep_alive)
        and not any(name in request.headers for name in personal)
    )
