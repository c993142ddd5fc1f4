"""What ``Cache-Control: only-if-cached`` is told of the cache: which items are missing, or that none is."""

from collections.abc import Sequence
from http import HTTPStatus

from aiohttp.web import Response

from proxy.embeddings.responses import cache_headers
from proxy.errors import NotCached


def all_cached() -> Response:
    """The response to a client that prefers not to read its items. They count as neither served nor saved."""
    extra = cache_headers("HIT", "hit", saved_tokens=0)
    extra["Preference-Applied"] = "return=minimal"
    return Response(status=HTTPStatus.NO_CONTENT, headers=extra)


def not_cached(keys: Sequence[bytes], missing: Sequence[bytes], *, is_valid: bool) -> NotCached:
    """The error for a request of ``keys``. Only a credential that is valid, so that it would be served what is cached,
    is told which items are missing."""
    absent = set(missing)
    positions = [position for position, key in enumerate(keys) if key in absent]
    message = f"{len(positions)} of {len(keys)} items are not cached."
    return NotCached(message, items=len(keys), missing=positions) if is_valid else NotCached(message)
