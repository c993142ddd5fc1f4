"""Requests that were hits from memory before, so that the same request need not be parsed again."""

import secrets
from array import array
from hashlib import blake2b

import xxhash
from moka_py import Moka
from msgspec import Struct

from proxy.access.validations import Credential
from proxy.embeddings.header_watch import Group, watched_groups
from proxy.fetch.request import ClientRequest
from proxy.http.recorder import head_of
from proxy.labels import BypassReason
from proxy.ledger.row import UNCOUNTED, Row
from proxy.protocol.identities import Identity
from proxy.protocol.keys import pack
from proxy.protocol.response_spec import ResponseSpec
from proxy.steps import Steps
from proxy.tenant import Tenant
from proxy.upstream.router import Origin

_MAX_BYTES = 16 * 1024**2
_MAX_HEADS = 16_384
_RECENT_BODIES = 16_384
_STEP_BYTES = 256 * 1024  # whose MAC takes a quarter of a millisecond
# Measured with tracemalloc, rounded up: what is known of a request, and what each key adds.
_OVERHEAD_BYTES, _KEY_BYTES = 700, 80


class MemoEntry(Struct, frozen=True, gc=False):
    """What the response to a known request is made from. It has no text of the request and no credential.

    The garbage collector visits neither it nor its parts: with tens of thousands, that took a quarter of a second.
    """

    spec: ResponseSpec
    credential: Credential
    origin: Origin  # whose CORS fields the response has
    tenant: Tenant
    watched: tuple[Group, ...]  # its header fields that a hit clears (`proxy.embeddings.header_watch`)
    doubt: BypassReason | None  # why it is keyed by its whole body
    row: Row = UNCOUNTED  # of the client in the ledger
    access_version: int = 0  # when it was admitted (`proxy.access.access.Access.access_version`)

    @classmethod
    def of(cls, client_request: ClientRequest, row: Row) -> "MemoEntry":
        tenant = Tenant(client_request.credential.id.tenant)
        return cls(
            client_request.spec,
            client_request.credential,
            client_request.origin,
            tenant,
            watched_groups(client_request.identity, client_request.parsed.model),
            None if client_request.parsed.doubt is None else client_request.parsed.doubt.reason,
            row=row,
        )

    @property
    def weight_bytes(self) -> int:
        texts = len(self.credential.scope.url) + 2 * len(self.spec.model or "")
        return _OVERHEAD_BYTES + _KEY_BYTES * len(self.spec.keys) + 4 * texts  # up to four bytes a character


class RequestMemo:
    """Known requests by fingerprint: a MAC of all that matters of a request, or of all its bytes. Bounded in bytes."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._by_bytes_key = blake2b(b"", key=self._secret, digest_size=32, person=b"whole")
        self._known: Moka[bytes, MemoEntry] = Moka(_MAX_BYTES, weigher=lambda _, known: known.weight_bytes)
        self._known_by_bytes: Moka[bytes, MemoEntry] = Moka(_MAX_BYTES, weigher=lambda _, known: known.weight_bytes)
        self._heads: Moka[bytes, bool] = Moka(_MAX_HEADS)
        self._recent = array("Q", bytes(8 * _RECENT_BODIES))
        self._recent_seed = secrets.randbits(64)
        self.get = self._known.get
        self.get_by_bytes = self._known_by_bytes.get

    def is_repeated(self, body: bytes) -> bool:
        """Whether the same ``body`` came not long ago. If not, it counts as having come now.

        Most bodies come once, and this takes a tenth of the time of a MAC. Equal hashes of different bodies do no harm.
        """
        seen = xxhash.xxh3_64_intdigest(body, self._recent_seed)
        index = seen % _RECENT_BODIES
        if self._recent[index] == seen:
            return True
        self._recent[index] = seen
        return False

    def fingerprint(self, target: str, own: Identity, body: bytes, epochs: int) -> Steps[bytes]:
        """The MAC of a request about which only these arguments matter. It is equal only for equivalent requests, whose
        items have the same keys. ``epochs`` is the number of epochs that have begun."""
        # The body runs to the end, so it needs no length.
        state = blake2b(pack((target, own.credentials, own.vector_affecting, epochs)), key=self._secret, digest_size=32)
        view = memoryview(body)
        for start in range(0, len(body), _STEP_BYTES):
            if start:
                yield
            state.update(view[start : start + _STEP_BYTES])
        return state.digest()

    def bytes_fingerprint(self, sent: bytes) -> bytes:
        """The MAC of a request as it was sent, head and all."""
        state = self._by_bytes_key.copy()
        state.update(sent)
        return state.digest()

    def put(self, fingerprint: bytes, known: MemoEntry) -> None:
        self._known.set(fingerprint, known)

    def put_by_bytes(self, sent: bytes, known: MemoEntry) -> None:
        """Remember a request by all its bytes, unless it is the first with its head: most new heads occur once."""
        head = self.bytes_fingerprint(head_of(sent))
        if self._heads.get(head) is None:
            self._heads.set(head, True)
        else:
            self._known_by_bytes.set(self.bytes_fingerprint(sent), known)

    def has_head(self, head: bytes) -> bool:
        """Whether a request for `put_by_bytes` began with ``head``."""
        return self._heads.get(self.bytes_fingerprint(head)) is not None
