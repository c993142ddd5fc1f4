"""Hits for requests that repeat an earlier one, wholly or in part.

A request that was a hit from memory is remembered by a MAC of all that it was parsed from, and is not parsed again.
Even its HTTP is not parsed in two cases: all bytes are the same, head included; or the connection has served requests
with the same head, and the body differs from one of theirs only in its texts. In the second case, items may be in the
store only, or missing (`proxy.embeddings.unparsed`).
"""

import time

from aiohttp.web import BaseRequest
from msgspec.structs import replace

from proxy import turns
from proxy.access.admission import Access
from proxy.cache.cache import Cache
from proxy.cache.entry import Entry
from proxy.embeddings.header_watch import HeaderWatch
from proxy.embeddings.known_head import KnownBody, KnownHead
from proxy.embeddings.lookup import count_model_versions, look_up_in_store
from proxy.embeddings.recognized import FastPathHit, FastPathMiss, RecognizedRequest
from proxy.embeddings.request_memo import MemoEntry, RequestMemo
from proxy.embeddings.responses import ResponseBuilder
from proxy.embeddings.sighting import ID_NAMES, IDS, PERSONAL, Sighting, is_plain, is_repeatable
from proxy.fetch.request import ClientRequest
from proxy.http.connection import Connection
from proxy.http.long_response import LongResponse, Response
from proxy.http.pending_bytes import MAX_PENDING_BYTES
from proxy.http.recorder import HEAD_END, MAX_WHOLE_BYTES, head_of
from proxy.ledger.hitless import Hitless
from proxy.ledger.row import Row
from proxy.protocol.identities import Identity
from proxy.telemetry.metrics import Metrics

# For a larger request the head is looked up first, since a MAC of the whole costs more.
_SMALL_BYTES = 2 * 1024
_MAX_BODY_BYTES = 4 * 1024**2
_MANY_ITEMS = 128  # recognizing so many and looking them up takes a turn


class FastPath:
    def __init__(self, cache: Cache, responses: ResponseBuilder, *, metrics: Metrics, access: Access) -> None:
        self._cache = cache
        self._responses = responses
        self._access = access
        self._parse_seconds = metrics.stage_seconds["parse"]
        self._lookup_seconds = metrics.stage_seconds["lookup"]
        self._metrics = metrics
        self._memo = RequestMemo()
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
        connection = sighting.request.protocol
        if isinstance(connection, Connection):
            self._learn(connection, sighting, client_request, row, is_hit=True)

    def fetched(self, sighting: Sighting, client_request: ClientRequest) -> None:
        """Learn the head and body of a request whose items were missing: those of similar requests may be, too."""
        connection = sighting.request.protocol
        if isinstance(connection, Connection) and self._access.may_serve(
            client_request.credential_id, client_request.credential_scope
        ):
            row = self._metrics.row(sighting.client, client_request.spec.model)
            self._learn(connection, sighting, client_request, row, is_hit=False)

    def _learn(
        self, connection: Connection, sighting: Sighting, client_request: ClientRequest, row: Row, *, is_hit: bool
    ) -> None:
        """Remember a head, and when it comes again, also the body: most clients repeat their heads."""
        known = self._meet(connection, sighting, is_hit=is_hit)
        if known is None or not known.count_request() or len(client_request.parsed.body) > MAX_PENDING_BYTES:
            return
        body = KnownBody.of(client_request, self._access.scope(client_request.identity), row, sighting.own)
        if body is not None:
            known.add(body)

    def _meet(self, connection: Connection, sighting: Sighting, *, is_hit: bool) -> KnownHead | None:
        """The head that the connection knows, if it is that of ``sighting``. If not, None, and the connection knows the
        head of ``sighting`` from now on.

        None also for the first hit with a head, even after misses: perhaps only repeats of the same request follow, and
        those are faster if they are remembered by their bytes.
        """
        sent = connection.head(sighting.request) if is_repeatable(sighting.request, PERSONAL) else None
        if sent is None or len(sent) > MAX_WHOLE_BYTES:
            return None
        known = self._known_head(connection)
        if known is None or known.match(sent) is None:
            known = connection.known_head = _new_head(sent, sighting)
            is_met = False
        else:
            is_met = known.has_hit or not is_hit
        if known is not None:
            known.has_hit |= is_hit
        return known if is_met else None

    def _known_head(self, connection: Connection) -> KnownHead | None:
        known = connection.known_head
        return known if isinstance(known, KnownHead) and known.access_version == self._access.access_version else None

    def find(self, sighting: Sighting, began_s: float) -> FastPathHit | None:
        """A known request, if memory has all its items."""
        known = None if sighting.fingerprint is None else self._memo.get(sighting.fingerprint)
        if known is None or not self._access.may_read(known.origin, sighting.request.headers):
            return None
        if self._has_much_to_learn(sighting):
            return None
        parsed_s = time.perf_counter()
        found = self._look_up(known) if self._may_serve(known) else None
        if found is None:
            return None
        # The list of client keys may give the same key another name.
        row = self._metrics.row(sighting.client, known.spec.model)
        known = replace(known, access_version=sighting.access_version, row=row)
        self._remember_bytes(sighting.request, known)
        return self._observed(FastPathHit(known, found, parsed_s, len(found)), began_s)

    def _has_much_to_learn(self, sighting: Sighting) -> bool:
        """Whether a request is worth being parsed in full once. Only one with an ID: it never repeats all bytes."""
        connection = sighting.request.protocol
        if not isinstance(connection, Connection) or not any(name in sighting.request.headers for name in IDS):
            return False
        known = self._meet(connection, sighting, is_hit=True)
        return known is not None and known.is_new

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

    async def look_up(self, recognized: RecognizedRequest, connection: Connection) -> FastPathHit | FastPathMiss | None:
        """Look up items that are many, or not all in memory. None: the request must be parsed. Raises `Overloaded`."""
        known = recognized.known
        if len(known.spec.keys) > _MANY_ITEMS:
            await turns.turn()
        cutoff_s = self._cache.freshness_cutoff_s(None)
        in_memory, left_out = recognized.in_memory, recognized.left_out
        found = await look_up_in_store(self._cache, known.spec.keys, in_memory, left_out, min_stored_at_s=cutoff_s)
        if not self._may_serve(known):
            connection.known_head = None
            return None
        if found.entries:
            self._metrics.admit_model(known.spec.model)  # another process may have stored them
        if found.missing or count_model_versions(found.entries) > 1:
            self._parse_seconds.observe(recognized.looked_up_s - recognized.began_s)
            return FastPathMiss(recognized, found)
        texts = None
        if self._is_large(known, found.entries):
            texts = await self._responses.numbers(known.spec, found.entries, connection.reservation())
            if texts is None:
                self._parse_from(known, connection)
                return None
        hit = FastPathHit(known, found.entries, recognized.looked_up_s, found.from_memory, recognized.fields, texts)
        return self._observed(hit, recognized.began_s)

    def _find_by_head(
        self, sent: bytes, connection: Connection, began_s: float
    ) -> FastPathHit | RecognizedRequest | None:
        """A request with the head that the connection knows."""
        recognized = self._recognized(sent, connection, began_s)
        if recognized is None:
            return None
        known = recognized.known
        if not self._may_serve(known):
            connection.known_head = None  # it has to be parsed, and perhaps others like it
            return None
        found = recognized.in_memory
        if len(known.spec.keys) > _MANY_ITEMS or not _is_hit(known, found) or self._is_large(known, found):
            return recognized
        return self._observed(FastPathHit(known, found, recognized.looked_up_s, len(found), recognized.fields), began_s)

    def _parse_from(self, known: MemoEntry, connection: Connection) -> None:
        """Have requests with as many items as ``known`` parsed: their responses are streamed."""
        known_head = self._known_head(connection)
        if known_head is not None:
            known_head.max_items = len(known.spec.keys) - 1

    def _recognized(self, sent: bytes, connection: Connection, began_s: float) -> RecognizedRequest | None:
        """A complete request with the head that the connection knows and a body that fits one it knows."""
        known_head = self._known_head(connection)
        if known_head is None or known_head.is_new or len(sent) > MAX_PENDING_BYTES:
            return None
        head = known_head.match(sent)
        if head is None or head.size_bytes + head.body_bytes != len(sent):
            return None
        body = sent[head.size_bytes :]
        found = known_head.match_body(body)
        if found is None:
            return None
        looked_up_s, left_out = time.perf_counter(), dict[bytes, Entry]()
        in_memory = self._peek(found[0], left_out)
        return RecognizedRequest(*found, body, began_s, looked_up_s, head.fields, in_memory, left_out)

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
        found = self._peek(known)
        return found if _is_hit(known, found) else None

    def _peek(self, known: MemoEntry, left_out: dict[bytes, Entry] | None = None) -> dict[bytes, Entry]:
        cutoff_s = self._cache.freshness_cutoff_s(None)
        return self._cache.peek(known.spec.keys, min_stored_at_s=cutoff_s, confirmed=True, left_out=left_out)

    def _may_serve(self, known: MemoEntry) -> bool:
        return self._access.may_serve(known.credential_id, known.credential_scope)

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


def _new_head(sent: bytes, sighting: Sighting) -> KnownHead | None:
    """A known head made from ``sent``, the head of a parsed request; None if it is not fit for that."""
    request, own = sighting.request, sighting.own
    known = KnownHead.of(sent)
    head = None if known is None else known.match(sent)
    if known is None or head is None:
        return None
    if not ID_NAMES.isdisjoint(name for name, _ in own.credentials + own.vector_affecting):
        return None  # the operator made it part of the key
    if any(name in request.headers and name.lower() not in head.fields for name in IDS):
        return None  # written in an unusual way, as without a space, so the template takes its value for a constant
    is_read_alike = head.body_bytes == request.content_length and all(
        request.headers.getall(name) == [value] for name, value in head.fields.items()
    )
    known.access_version = sighting.access_version
    return known if is_read_alike else None
