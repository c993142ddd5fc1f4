"""The request directives of ``Cache-Control`` (pure)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.protocol.headers import Headers

_DIRECTIVE = re.compile(r"([a-z-]+)(?:\s*=\s*\"?(\d{1,9})\"?)?")


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
