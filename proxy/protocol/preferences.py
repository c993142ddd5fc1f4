"""What a client prefers (pure): how urgent its request is (``Priority``, RFC 9218 §4), how long it waits (``Prefer:
wait``, RFC 7240 §4.3), and whether it reads the response (``Prefer: return``, §4.2)."""

import re

from proxy.protocol.headers import Headers

_URGENCY = re.compile(r"(?:^|,)\s*u\s*=\s*([0-7])\s*(?=,|;|$)")
_WAIT = re.compile(r"(?:^|,|;)\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?=,|;|$)", re.IGNORECASE)
_MINIMAL = re.compile(r"(?:^|,)\s*return\s*=\s*\"?minimal\"?\s*(?=,|;|$)", re.IGNORECASE)
# Of a request without ``Priority``: the default of RFC 9218 §4.1, and one below it.
QUERY_URGENCY, BULK_URGENCY = 3, 4


def urgency_of(headers: Headers, *, items: int, interactive_items: int) -> int:
    """0 is the most urgent and 7 the least. Without ``Priority``, a request of few items counts as a query, which
    somebody waits for."""
    value = headers.get("Priority")
    if value is not None and (found := _URGENCY.search(value)):
        return int(found[1])
    return QUERY_URGENCY if items <= interactive_items else BULK_URGENCY


def wait_s_of(headers: Headers) -> float | None:
    """For how long the client prefers to wait; None if it does not say."""
    for value in headers.getall("Prefer", ()):
        if found := _WAIT.search(value):
            return float(found[1])
    return None


def prefers_minimal(headers: Headers) -> bool:
    """Whether the client prefers a response without a body."""
    return any(_MINIMAL.search(value) for value in headers.getall("Prefer", ()))
