"""Which heads connections know (`proxy.embeddings.known_head`), and how they learn them.

Most clients repeat their heads. A head is known once it came, and its bodies are learned from when it comes again.
"""

from proxy.access.access import Access
from proxy.embeddings.known_head import KnownBody, KnownHead
from proxy.embeddings.sighting import ID_NAMES, IDS, PERSONAL, Sighting, is_repeatable
from proxy.fetch.request import ClientRequest
from proxy.http.connection import Connection
from proxy.http.pending_request import MAX_PENDING_BYTES
from proxy.http.recorder import MAX_WHOLE_BYTES
from proxy.ledger.row import Row


class KnownHeads:
    def __init__(self, access: Access) -> None:
        self._access = access

    def of(self, connection: Connection) -> KnownHead | None:
        """The head that ``connection`` knows, unless it is stale."""
        known = connection.known_head
        return known if isinstance(known, KnownHead) and known.access_version == self._access.access_version else None

    def learn(self, sighting: Sighting, client_request: ClientRequest, row: Row, *, is_hit: bool) -> None:
        """Learn the head of a request that was parsed, and when it comes again, also the body."""
        known = self._meet(sighting, is_hit=is_hit)
        if known is None or not known.count_request() or len(client_request.parsed.body) > MAX_PENDING_BYTES:
            return
        body = KnownBody.of(client_request, self._access.scope(client_request.identity), row, sighting.own)
        if body is not None:
            known.add(body)

    def is_worth_parsing(self, sighting: Sighting) -> bool:
        """Whether a request is worth being parsed in full once. Only one with an ID: it never repeats all bytes."""
        if not any(name in sighting.request.headers for name in IDS):
            return False
        known = self._meet(sighting, is_hit=True)
        return known is not None and known.is_new

    def parse_from(self, connection: Connection, items: int) -> None:
        """Have requests with the head that ``connection`` knows parsed if they have so many ``items``, or more: their
        responses are streamed."""
        known = self.of(connection)
        if known is not None:
            known.max_items = items - 1

    def _meet(self, sighting: Sighting, *, is_hit: bool) -> KnownHead | None:
        """The head that the connection knows, if it is that of ``sighting``. If not, None, and the connection knows the
        head of ``sighting`` from now on.

        None also for the first hit with a head, even after misses: perhaps only repeats of the same request follow, and
        those are faster if they are remembered by their bytes.
        """
        connection = sighting.request.protocol
        if not isinstance(connection, Connection) or not is_repeatable(sighting.request, PERSONAL):
            return None
        sent = connection.head(sighting.request)
        if sent is None or len(sent) > MAX_WHOLE_BYTES:
            return None
        known = self.of(connection)
        if known is None or known.match(sent) is None:
            known = connection.known_head = _new_head(sent, sighting)
            is_met = False
        else:
            is_met = known.has_hit or not is_hit
        if known is not None:
            known.has_hit |= is_hit
        return known if is_met else None


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
