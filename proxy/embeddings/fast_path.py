"""Hits for repeated requests.

A request that was a hit from memory is remembered by a MAC of all that it was parsed from, and is not parsed again. If
all its bytes are the same, head included, not even its HTTP is parsed.
"""

import time
from typing import NamedTuple

from aiohttp import HttpVersion11
from aiohttp.web import BaseRequest

from proxy.access.admission import Access
from proxy.cache.cache import Cache
from proxy.cache.entry import Entry
from proxy.embeddings.lookup import count_model_versions
from proxy.embeddings.request_memo import MemoEntry, RequestMemo
from proxy.embeddings.responses import ResponseBuilder
from proxy.http.connection import Connection
from proxy.http.recorder import HEAD_END, MAX_WHOLE_BYTES, head_of
from proxy.protocol.identities import Identity
from proxy.telemetry.metrics import Metrics

# For a larger request the head is looked up first, since a MAC of the whole costs more.
_SMALL_BYTES = 2 * 1024
_MAX_BODY_BYTES = 4 * 1024**2
# Requests with these fields get a response of their own. Origin is one of them: the CORS fields for it may change.
_PERSONAL = ("X-Request-Id", "traceparent", "Upgrade", "Expect", "Transfer-Encoding", "Origin")


class FastPathHit(NamedTuple):
    """A repeated request, whose items were looked up at ``looked_up_s``."""

    known: MemoEntry
    found: dict[bytes, Entry]
    looked_up_s: float


class FastPath:
    def __init__(self, cache: Cache, responses: ResponseBuilder, *, metrics: Metrics, access: Access) -> None:
        self._cache = cache
        self._responses = responses
        self._access = access
        self._stages = metrics.stage_seconds
        self._memo = RequestMemo()

    def fingerprint(self, request: BaseRequest, own: Identity, body: bytes) -> bytes | None:
        """What a request is known by. None if it may differ in more than that, or is so large that the MAC would block
        the event loop."""
        if len(body) > _MAX_BODY_BYTES or not _is_plain(request, own):
            return None
        return self._memo.fingerprint(request.raw_path, own, body)

    def remember(self, fingerprint: bytes, known: MemoEntry) -> None:
        """A request was a hit from memory."""
        self._memo.put(fingerprint, known)

    def find(
        self, request: BaseRequest, fingerprint: bytes, began_s: float, *, keys_version: int
    ) -> FastPathHit | None:
        """A known request, if memory has all its items. ``keys_version``: of the client keys that admitted it."""
        known = self._memo.get(fingerprint)
        if known is None or not self._access.may_read(known.origin, request.headers):
            return None
        hit = self._hit(known, began_s)
        if hit is not None:
            self._remember_bytes(request, known._replace(keys_version=keys_version))
        return hit

    def find_by_bytes(self, sent: bytes, began_s: float) -> tuple[FastPathHit, bytes, int] | None:
        """The same for the bytes of a request, whose credential must still be valid.

        With the response's body, and the number of tokens it saves. None also if that is too large to write at once.
        """
        if len(sent) > MAX_WHOLE_BYTES:
            return None
        if len(sent) > _SMALL_BYTES and not self._memo.has_head(head_of(sent)):
            return None
        known = self._memo.get_by_bytes(self._memo.bytes_fingerprint(sent))
        if known is None or known.keys_version != self._access.keys_version:
            return None
        hit = self._hit(known, began_s, may_be_large=False)
        return None if hit is None else (hit, *self._responses.body_of_hit(known.spec, hit.found))

    def begins(self, sent: bytes) -> bool:
        """Whether these bytes are the head of a request that `find_by_bytes` may know."""
        return sent.endswith(HEAD_END) and len(sent) <= MAX_WHOLE_BYTES and self._memo.has_head(sent)

    def _hit(self, known: MemoEntry, began_s: float, *, may_be_large: bool = True) -> FastPathHit | None:
        if not self._access.may_serve(known.credential_id, known.credential_scope):
            return None
        parsed_s = time.perf_counter()
        spec = known.spec
        found = self._cache.peek(spec.keys, min_stored_at_s=self._cache.freshness_cutoff_s(None), confirmed=True)
        if not all(map(found.__contains__, spec.keys)) or count_model_versions(found) > 1:
            return None
        if not may_be_large and len(spec.keys) > 1 and self._responses.is_large(spec, found):
            return None
        self._stages["parse"].observe(parsed_s - began_s)
        self._stages["lookup"].observe(time.perf_counter() - parsed_s)
        return FastPathHit(known, found, parsed_s)

    def _remember_bytes(self, request: BaseRequest, known: MemoEntry) -> None:
        connection = request.protocol
        if not isinstance(connection, Connection) or not _is_repeatable(request):
            return
        sent = connection.whole(request)
        if sent is not None:
            self._memo.put_by_bytes(sent, known)


def _is_plain(request: BaseRequest, own: Identity) -> bool:
    """Whether nothing of a request matters but its target, its identity and its body."""
    fields = request.headers
    return (
        fields.get("Content-Type") == "application/json"
        and "Content-Encoding" not in fields
        and "Cache-Control" not in fields
        and not own.is_signed
    )


def _is_repeatable(request: BaseRequest) -> bool:
    """Whether another request of the same bytes may get the same response."""
    return (
        request.version == HttpVersion11
        and bool(request.keep_alive)
        and not any(name in request.headers for name in _PERSONAL)
    )
