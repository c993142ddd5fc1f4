"""Requests that come again.

One that was answered from memory is known from then on by a MAC of all it was understood from, and not taken apart
again. One that is the same to the byte, head and all, is not even parsed.
"""

import time
from typing import NamedTuple

from aiohttp import HttpVersion11
from aiohttp.web import BaseRequest

from proxy.access.admission import Access
from proxy.cache.cache import Cache
from proxy.cache.memory import Entry
from proxy.embeddings.request_memo import MemoEntry, RequestMemo
from proxy.embeddings.responses import ResponseBuilder
from proxy.http.connection import Connection
from proxy.http.recorder import HEAD_END, MAX_WHOLE_BYTES, head_of
from proxy.protocol.identities import Identity
from proxy.telemetry.metrics import Metrics

# Of more than so many, first the head is looked for: a MAC of the whole would cost more than that tells.
_FEW_BYTES = 2 * 1024
_MAX_MARKED_BYTES = 4 * 1024**2
# Fields that ask for an answer of one's own. A page's Origin is one: what a response says of it may change.
_PERSONAL = ("X-Request-Id", "traceparent", "Upgrade", "Expect", "Transfer-Encoding", "Origin")


class FastPathHit(NamedTuple):
    """A request that came again; ``looked_up_s`` is when its items were looked for."""

    known: MemoEntry
    found: dict[bytes, Entry]
    looked_up_s: float


class FastPath:
    def __init__(self, cache: Cache, responses: ResponseBuilder, *, metrics: Metrics, access: Access) -> None:
        self._cache = cache
        self._answers = responses
        self._access = access
        self._stages = metrics.stage_seconds
        self._recall = RequestMemo()

    def mark(self, request: BaseRequest, own: Identity, body: bytes) -> bytes | None:
        """What a request can be known by; None for one that there may be more to than what is marked, or which is so
        large that a MAC of it would keep everybody waiting."""
        if len(body) > _MAX_MARKED_BYTES or not _is_plain(request, own):
            return None
        return self._recall.mark(request.raw_path, own, body)

    def remember(self, mark: bytes, known: MemoEntry) -> None:
        """A request was answered from memory."""
        self._recall.put(mark, known)

    def answer(self, request: BaseRequest, mark: bytes, began_s: float, *, keys_version: int) -> FastPathHit | None:
        """The response to a request that was seen before, if memory has all of it. ``keys_version`` is that of the
        client keys that let it in."""
        known = self._recall.get(mark)
        if known is None or not self._access.may_read(known.origin, request.headers):
            return None
        repeat = self._repeat(known, began_s)
        if repeat is not None:
            self._remember_whole(request, known._replace(keys_version=keys_version))
        return repeat

    def answer_whole(self, sent: bytes, began_s: float) -> tuple[FastPathHit, bytes, int] | None:
        """The same for a request of which nothing is known but its bytes: its credential has to be as good as then.

        With the response's body, and how many tokens it saves. None also where it is too large to be written at once.
        """
        if len(sent) > MAX_WHOLE_BYTES:
            return None
        if len(sent) > _FEW_BYTES and not self._recall.has_head(head_of(sent)):
            return None
        known = self._recall.get_whole(self._recall.mark_whole(sent))
        if known is None or known.keys_version != self._access.keys_version:
            return None
        repeat = self._repeat(known, began_s, is_large=False)
        return None if repeat is None else (repeat, *self._answers.body_of_hit(known.spec, repeat.found))

    def begins(self, sent: bytes) -> bool:
        """Whether these bytes are a head with which a request began that `answer_whole` may know."""
        return sent.endswith(HEAD_END) and len(sent) <= MAX_WHOLE_BYTES and self._recall.has_head(sent)

    def _repeat(self, known: MemoEntry, began_s: float, *, is_large: bool = True) -> FastPathHit | None:
        """``is_large``: the response may be."""
        if not self._access.may_serve(known.credential_id, known.credential_scope):
            return None
        parsed_s = time.perf_counter()
        spec = known.spec
        found = self._cache.peek(spec.keys, min_stored_at_s=self._cache.freshness_cutoff_s(None), confirmed=True)
        if not all(map(found.__contains__, spec.keys)) or epochs(found) > 1:
            return None
        if not is_large and len(spec.keys) > 1 and self._answers.is_large(spec, found):
            return None
        self._stages["parse"].observe(parsed_s - began_s)
        self._stages["lookup"].observe(time.perf_counter() - parsed_s)
        return FastPathHit(known, found, parsed_s)

    def _remember_whole(self, request: BaseRequest, known: MemoEntry) -> None:
        connection = request.protocol
        if not isinstance(connection, Connection) or not _is_repeatable(request):
            return
        sent = connection.whole(request)
        if sent is not None:
            self._recall.put_whole(sent, known)


def epochs(*entries: dict[bytes, Entry]) -> int:
    """How many there are among these; an answer must not mix any. A model whose name nobody told can be any."""
    found = {entry.epoch for some in entries for entry in some.values()}
    if len(found) <= 1:
        return len(found)
    models, lengths = {model for model, _ in found if model}, {length for _, length in found}
    return max(len(models), len(lengths))


def _is_plain(request: BaseRequest, own: Identity) -> bool:
    """Whether a request is one of those that come again and again: nothing but its body matters, and whose it is."""
    fields = request.headers
    return (
        fields.get("Content-Type") == "application/json"
        and "Content-Encoding" not in fields
        and "Cache-Control" not in fields
        and not own.is_signed
    )


def _is_repeatable(request: BaseRequest) -> bool:
    """Whether nothing of a request's head asks for what another request of the same bytes should not have."""
    return (
        request.version == HttpVersion11
        and bool(request.keep_alive)
        and not any(name in request.headers for name in _PERSONAL)
    )
