"""What a client asks for in header fields (pure).

What the cache may do (``Cache-Control``, RFC 9111 §5.2.1), how urgent the request is (``Priority``, RFC 9218 §4), how
long it waits (``Prefer: wait``, RFC 7240 §4.3), and whether it reads the response (``Prefer: return``, §4.2).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.protocol.headers import Headers

_DIRECTIVE = re.compile(r"([a-z-]+)(?:\s*=\s*\"?(\d{1,9})\"?)?")
_URGENCY = re.compile(r"(?:^|,)\s*u\s*=\s*([0-7])\s*(?=,|;|$)")
_WAIT = re.compile(r"(?:^|,|;)\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?=,|;|$)", re.IGNORECASE)
_MINIMAL = re.compile(r"(?:^|,)\s*return\s*=\s*\"?minimal\"?\s*(?=,|;|$)", re.IGNORECASE)
# Of a request without ``Priority``: the default of RFC 9218 §4.1, and one below it.
QUERY_URGENCY, BULK_URGENCY = 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Directives:
    """The directives of RFC 9111 §5.2.1 that apply to a cache of vectors."""

    no_cache: bool = False  # fetch all items and replace the stored entries
    no_store: bool = False  # store nothing from this request's response
    only_if_cached: bool = False  # respond 504 if an item is not cached
    max_age_s: int | None = None  # fetch and replace entries older than this


NO_DIRECTIVES = Directives()


def cache_control(headers: Headers) -> Directives:
    """Parse ``Cache-Control``. Unknown directives are ignored (RFC 9111 §5.2.3)."""
    values = headers.getall("Cache-Control", None)
    if values is None:
        return NO_DIRECTIVES
    given = dict(_directives(",".join(values).lower().split(",")))
    age = given.get("max-age", "")
    return Directives(
        no_cache="no-cache" in given,
        no_store="no-store" in given,
        only_if_cached="only-if-cached" in given,
        max_age_s=int(age) if age else None,
    )


def _directives(parts: Iterable[str]) -> Iterable[tuple[str, str]]:
    for part in parts:
        if match := _DIRECTIVE.fullmatch(part.strip()):
            yield match[1], match[2] or ""


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
