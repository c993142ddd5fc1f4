"""Responses to ``Cache-Control: only-if-cached``: all items are cached, or the error that names the missing ones."""

from collections.abc import Sequence
from http import HTTPStatus

from aiohttp.web import Response

from proxy.embeddings.cache_headers import cache_headers
from proxy.errors import NotCached


def all_cached() -> Response:
    """The response to a client that prefers not to read its items. They count as neither served nor saved."""
    extra = cache_headers("HIT", "hit", saved_tokens=0)
    extra["Preference-Applied"] = "return=minimal"
    return Response(status=HTTPStatus.NO_CONTENT, headers=extra)


def not_cached(keys: Sequence[bytes], missing: Sequence[bytes], *, is_valid: bool) -> NotCached:
    """The error for a request of ``keys``. It names the missing items only if the credential ``is_valid``, since only
    then would the client be served the others."""
    absent = set(missing)
    positions = [position for position, key in enumerate(keys) if key in absent]
    message = f"{len(positions)} of {len(keys)} items are not cached."
    return NotCached(message, items=len(keys), missing=positions) if is_valid else NotCached(message)
