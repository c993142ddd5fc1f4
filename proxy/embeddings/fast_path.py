"""Hits for requests that repeat an earlier one, wholly or in part.

A request that was a hit from memory is remembered by a MAC of all that it was parsed from, and is not parsed again.
Even its HTTP is not parsed in two cases: all bytes are the same, head included; or the connection has served requests
with the same head, and the body differs from one of theirs only in its texts. In the second case, items may be in the
store only, or missing (`proxy.embeddings.unparsed`).
"""

import time
from collections.abc import Mapping

from aiohttp.web import BaseRequest
from msgspec.structs import replace

from proxy import turns
from proxy.access.access import Access
from proxy.cache.cache import Cache, Peeked
from proxy.cache.entry import Entry, current
from proxy.embeddings.header_watch import HeaderWatch
from proxy.embeddings.known_head import GivenTexts, KnownBody, KnownHead
from proxy.embeddings.known_heads import KnownHeads
from proxy.embeddings.lookup import count_model_versions, look_up_in_store, peek_in_turns
from proxy.embeddings.recognized import FastPathHit, FastPathMiss, RecognizedRequest
from proxy.embeddings.request_memo import MemoEntry, RequestMemo
from proxy.embeddings.responses import ResponseBuilder
from proxy.embeddings.sighting import IDS, PERSONAL, Sighting, is_plain, is_repeatable
from proxy.fetch.request import ClientRequest
from proxy.http.connection import Connection
from proxy.http.head_template import Head
from proxy.http.long_response import LongResponse, Response
from proxy.http.pending_request import MAX_PENDING_BYTES
from proxy.http.recorder import HEAD_END, MAX_WHOLE_BYTES, head_of
from proxy.ledger.hitless import Hitless
from proxy.protocol.identities import Identity
from proxy.telemetry.metrics import Metrics

# For a larger request the head is looked up first, since a MAC of the whole costs more.
_SMALL_BYTES = 2 * 1024
_MAX_BODY_BYTES = 4 * 1024**2
# A request of more bytes is recognized in turns, and its items are looked up in turns.
LONG_BYTES, _MANY_ITEMS = 32 * 1024, 128
_ITEMS_A_TURN = 64  # to derive so many keys takes a tenth of a millisecond


class FastPath:
    def __init__(self, cache: Cache, responses: ResponseBuilder, *, metrics: Metrics, access: Access) -> None:
        self._cache = cache
        self._responses = responses
        self._access = access
        self._parse_seconds = metrics.stage_seconds["parse"]
        self._lookup_seconds = metrics.stage_seconds["lookup"]
        self._metrics = metrics
        self._memo = RequestMemo()
        self._heads = KnownHeads(access)
        self.header_watch = HeaderWatch()  # `_observed` reports each hit to this and to the next
        self.hitless = Hitless()

    async def sight(
        self, request: BaseRequest, own: Identity, body: bytes, *, access_version: int, client: str | None
    ) -> Sighting | None:
        """None if more matters about a request than its target, its identity and its body, or if it is so large that
        its hash would block the event loop."""
        if len(body) > _MAX_BODY_BYTES or not is_plain(request, own):
            return None
        is_repeated = self._memo.is_repeated(body)
        # Read before the keys are derived: if an epoch begins in between, no later request has this fingerprint.
        epochs = self._access.epochs_begun
        fingerprint = None
        if is_repeated:
            fingerprint = await turns.run(self._memo.fingerprint(request.raw_path, own, body, epochs))
        return Sighting(request, own, access_version, client, fingerprint)

    def remember(self, sighting: Sighting, client_request: ClientRequest, *, from_memory: bool) -> None:
        """Remember a request that was a hit. ``from_memory``: all items came from memory, and none from the store."""
        self._metrics.ledger.admit(sighting.client)
        row = self._metrics.row(sighting.client, client_request.spec.model)
        if sighting.fingerprint is not None and from_memory:
            self._memo.put(sighting.fingerprint, MemoEntry.of(client_request, row))
        self._heads.learn(sighting, client_request, row, is_hit=True)

    def fetched(self, sighting: Sighting, client_request: ClientRequest) -> None:
        """Learn the head and body of a request whose items were missing: those of similar requests may be, too."""
        if self._access.may_serve(client_request.credential):
            row = self._metrics.row(sighting.client, client_request.spec.model)
            self._heads.learn(sighting, client_request, row, is_hit=False)

    async def find(self, sighting: Sighting, began_s: float) -> FastPathHit | None:
        """A known request, if memory has all its items."""
        known = None if sighting.fingerprint is None else self._memo.get(sighting.fingerprint)
        if known is None or not self._access.may_read(known.origin, sighting.request.headers):
            return None
        if self._heads.is_worth_parsing(sighting):
            return None
        parsed_s = time.perf_counter()
        found = (await self._peek_in_turns(known)).found if self._may_serve(known) else {}
        if not (_is_hit(known, found) and self._may_serve(known)):
            return None
        # The list of client keys may give the same key another name.
        row = self._metrics.row(sighting.client, known.spec.model)
        known = replace(known, access_version=sighting.access_version, row=row)
        self._remember_bytes(sighting.request, known)
        return self._observed(FastPathHit(known, found, parsed_s, len(found)), began_s)

    def find_by_bytes(
        self, sent: bytes, connection: Connection, began_s: float
    ) -> FastPathHit | RecognizedRequest | None:
        """`find` for the bytes of a request. Its credential must still be valid.

        None also if the response is too large to be written at once. `look_up` takes a `RecognizedRequest` further.
        """
        return self._find_by_head(sent, connection, began_s) or self._find_repeated(sent, began_s)

    def response(self, hit: FastPathHit, request_id: str) -> Response | LongResponse:
        """The response to a request that was found by its bytes, in parts. The request is counted."""
        cors = hit.known.origin.cors.hit_header_lines()
        known, memory = hit.known, hit.from_memory
        return self._responses.bytes_of_hit(
            known.spec, hit.found, known.row, from_memory=memory, request_id=request_id, cors=cors, texts=hit.texts
        )

    def is_for_later(self, sent: bytes, connection: Connection) -> bool:
        """Whether more than `LONG_BYTES` are to be passed to `recognize`, since that would block the event loop."""
        return self._matched(sent, connection) is not None

    async def recognize(self, sent: bytes, connection: Connection, began_s: float) -> RecognizedRequest | None:
        """`find_by_bytes` for a long request, whose items are not looked up."""
        await turns.turn()
        matched = self._matched_body(sent, connection)
        if matched is None:
            return None
        known_body, given, body, fields = matched
        keys: list[bytes] = []
        async for texts in turns.in_turns([given] if isinstance(given, str) else given, size=_ITEMS_A_TURN):
            keys += known_body.keys(list(texts))
        known, looked_up_s = known_body.entry_of_keys(keys), time.perf_counter()
        return RecognizedRequest(known, known_body, given, body, began_s, looked_up_s, fields, None)

    async def look_up(self, recognized: RecognizedRequest, connection: Connection) -> FastPathHit | FastPathMiss | None:
        """Look up items that are many, or not all in memory. None: the request must be parsed. Raises `Overloaded`."""
        known, peeked = recognized.known, recognized.peeked
        if peeked is None:
            await turns.turn()
            peeked = await self._peek_in_turns(known)
        elif len(known.spec.keys) > _MANY_ITEMS:
            await turns.turn()
        cutoff_s = self._cache.freshness_cutoff_s(None)
        found = await look_up_in_store(self._cache, known.spec.keys, peeked, min_stored_at_s=cutoff_s)
        if found.entries:
            self._metrics.admit_model(known.spec.model)  # another process may have stored them
        if found.missing or count_model_versions(found.entries) > 1:
            self._parse_seconds.observe(recognized.looked_up_s - recognized.began_s)
            return FastPathMiss(recognized, found)
        if not self._may_serve(known):  # any more
            connection.known_head = None
            return None
        texts = None
        if self._is_large(known, found.entries):
            texts = await self._responses.numbers(known.spec, found.entries, connection.reservation())
            if texts is None:
                self._heads.parse_from(connection, len(known.spec.keys))
                return None
        hit = FastPathHit(known, found.entries, recognized.looked_up_s, found.from_memory, recognized.fields, texts)
        return self._observed(hit, recognized.began_s)

    def _find_by_head(
        self, sent: bytes, connection: Connection, began_s: float
    ) -> FastPathHit | RecognizedRequest | None:
        """A complete request with the head that the connection knows and a body that fits one it knows."""
        matched = self._matched_body(sent, connection)
        if matched is None:
            return None
        known_body, given, body, fields = matched
        known = known_body.entry(given)
        looked_up_s = time.perf_counter()
        peeked = self._peek(known)
        found = peeked.found
        if not self._may_serve(known):
            connection.known_head = None  # it has to be parsed, and perhaps others like it
            return None
        if len(known.spec.keys) > _MANY_ITEMS or not _is_hit(known, found) or self._is_large(known, found):
            return RecognizedRequest(known, known_body, given, body, began_s, looked_up_s, fields, peeked)
        return self._observed(FastPathHit(known, found, looked_up_s, len(found), fields), began_s)

    def _matched(self, sent: bytes, connection: Connection) -> tuple[KnownHead, Head] | None:
        """The head that the connection knows, and what differs in that of ``sent``, if that is a complete request."""
        known_head = self._heads.of(connection)
        if known_head is None or known_head.is_new or len(sent) > MAX_PENDING_BYTES:
            return None
        head = known_head.match(sent)
        return (known_head, head) if head is not None and head.size_bytes + head.body_bytes == len(sent) else None

    def _matched_body(
        self, sent: bytes, connection: Connection
    ) -> tuple[KnownBody, GivenTexts, bytes, Mapping[str, str]] | None:
        """The known body that a complete request fits, its input, its body, and what differs in its head."""
        matched = self._matched(sent, connection)
        if matched is None:
            return None
        known_head, head = matched
        body = sent[head.size_bytes :]
        found = known_head.match_body(body)
        return None if found is None else (*found, body, head.fields)

    def _find_repeated(self, sent: bytes, began_s: float) -> FastPathHit | None:
        """A request that is the same in all its bytes."""
        if len(sent) > MAX_WHOLE_BYTES:
            return None
        if len(sent) > _SMALL_BYTES and not self._memo.has_head(head_of(sent)):
            return None
        known = self._memo.get_by_bytes(self._memo.bytes_fingerprint(sent))
        if known is None or known.access_version != self._access.access_version or not self._may_serve(known):
            return None
        parsed_s = time.perf_counter()
        found = self._look_up(known)
        if found is None or self._is_large(known, found):
            return None
        return self._observed(FastPathHit(known, found, parsed_s, len(found)), began_s)

    def begins(self, sent: bytes) -> bool:
        """Whether these bytes are the head of a request that `find_by_bytes` may know."""
        return sent.endswith(HEAD_END) and len(sent) <= MAX_WHOLE_BYTES and self._memo.has_head(sent)

    def _look_up(self, known: MemoEntry) -> dict[bytes, Entry] | None:
        """The entries of a known request, if memory has them all."""
        found = self._peek(known).found
        return found if _is_hit(known, found) else None

    def _peek(self, known: MemoEntry) -> Peeked:
        return self._cache.peek_confirmed(known.spec.keys, min_stored_at_s=self._cache.freshness_cutoff_s(None))

    async def _peek_in_turns(self, known: MemoEntry) -> Peeked:
        keys, cutoff_s = known.spec.keys, self._cache.freshness_cutoff_s(None)
        peeked = await peek_in_turns(self._cache, keys, min_stored_at_s=cutoff_s)
        if len(keys) <= _MANY_ITEMS:
            return peeked
        await turns.turn()  # the response, too, has a turn of its own
        return Peeked(current(peeked.found), peeked.left_out)

    def _may_serve(self, known: MemoEntry) -> bool:
        return self._access.may_serve(known.credential)

    def _is_large(self, known: MemoEntry, found: dict[bytes, Entry]) -> bool:
        return len(known.spec.keys) > 1 and self._responses.is_large(known.spec, found)

    def _observed(self, hit: FastPathHit, began_s: float) -> FastPathHit:
        self.header_watch.clear(hit.known.watched)
        if self.hitless.streaks:
            self.hitless.hit(hit.known.tenant.name)
        if hit.known.doubt is not None:
            self._metrics.whole_bodies.labels(hit.known.doubt.value).inc()
        self._parse_seconds.observe(hit.looked_up_s - began_s)
        self._lookup_seconds.observe(time.perf_counter() - hit.looked_up_s)
        return hit

    def _remember_bytes(self, request: BaseRequest, known: MemoEntry) -> None:
        connection = request.protocol
        if not isinstance(connection, Connection) or not is_repeatable(request, PERSONAL + IDS):
            return
        sent = connection.whole(request)
        if sent is not None:
            self._memo.put_by_bytes(sent, known)


def _is_hit(known: MemoEntry, found: dict[bytes, Entry]) -> bool:
    """Whether ``found`` has all entries of a request, of one model version."""
    return all(map(found.__contains__, known.spec.keys)) and (len(found) <= 1 or count_model_versions(found) <= 1)
