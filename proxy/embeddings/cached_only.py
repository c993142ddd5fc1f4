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


def not_cached(keys: Sequence[bytes], missing: Sequence[bytes], *, is_valid: bool, is_shared: bool) -> NotCached:
    """The error for a request of ``keys``. It names the missing items only if the credential ``is_valid``, since only
    then would the client be served the others. ``is_shared``: clients with other credentials have the same entries."""
    if not is_valid and (is_shared or not missing):
        # Other clients' items may be cached, which this credential must not reveal.
        return NotCached("The upstream has not accepted this API key recently, so cached items are not served.")
    absent = set(missing)
    positions = [position for position, key in enumerate(keys) if key in absent]
    message = f"{len(positions)} of {len(keys)} items are not cached."
    return NotCached(message, items=len(keys), missing=positions) if is_valid else NotCached(message)
