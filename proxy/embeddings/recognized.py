"""Requests that were recognized without being parsed, and what the cache has of them."""

import sys
from collections.abc import Mapping
from typing import NamedTuple

from proxy.cache.cache import Peeked
from proxy.cache.entry import Entry
from proxy.embeddings.known_head import GivenTexts, KnownBody
from proxy.embeddings.lookup import Lookup
from proxy.embeddings.request_memo import MemoEntry
from proxy.fetch.request import ClientRequest
from proxy.reservation import MemoryReservation
from proxy.telemetry.tracing import Span

_NO_FIELDS: Mapping[str, str] = {}


class FastPathHit(NamedTuple):
    """A request that was not parsed, whose items were looked up at ``looked_up_s``. ``fields`` are those in which its
    head differs from others, by their names in lower case. ``from_memory`` of its entries were in memory. A response
    that is written in turns has the ``texts`` of its vectors, unless they are base64."""

    known: MemoEntry
    found: dict[bytes, Entry]
    looked_up_s: float
    from_memory: int
    fields: Mapping[str, str] = _NO_FIELDS
    texts: list[bytes] | None = None


class RecognizedRequest(NamedTuple):
    """A request that was not parsed, and what memory has of it; None: not looked up. It began at ``began_s``."""

    known: MemoEntry
    known_body: KnownBody
    given: GivenTexts
    body: bytes
    began_s: float
    looked_up_s: float
    fields: Mapping[str, str]
    peeked: Peeked | None

    @property
    def texts_bytes(self) -> int:
        """The memory that its texts take, besides the body."""
        given = self.given
        return sys.getsizeof(given) if isinstance(given, str) else sys.getsizeof(given) + sum(map(sys.getsizeof, given))

    def client_request(self, reservation: MemoryReservation, span: Span) -> ClientRequest:
        return self.known_body.client_request(
            self.body, self.given, self.known.spec, fields=self.fields, reservation=reservation, span=span
        )


class FastPathMiss(NamedTuple):
    """A request that was not parsed, and what the cache ``found`` of it: not all items, or not of one model version."""

    recognized: RecognizedRequest
    found: Lookup
