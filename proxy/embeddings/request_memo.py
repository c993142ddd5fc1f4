"""Requests that were answered from memory before, so that one that comes again is not taken apart again."""

import secrets
from hashlib import blake2b
from typing import NamedTuple

from moka_py import Moka

from proxy.access.validations import CredentialId, CredentialScope
from proxy.budget import Tenant
from proxy.http.recorder import head_of
from proxy.protocol.identities import Identity
from proxy.protocol.keys import pack
from proxy.protocol.vectors import Encoding
from proxy.upstream.router import Origin

_MAX_BYTES = 16 * 1024**2
_MAX_HEADS = 16_384
# Measured with tracemalloc, rounded up: what is known of a request, and what each key adds.
_OVERHEAD_BYTES, _KEY_BYTES = 700, 80


class ResponseSpec(NamedTuple):
    """What an answer is made from, once every item has an entry."""

    model: str | None
    encoding: Encoding
    keys: list[bytes]  # in input order
    has_id: bool = False  # answers have a field of that name
    is_keyed_whole: bool = False  # the keys are of the request as a whole


class MemoEntry(NamedTuple):
    """What was understood of a request. There is no text in it and no credential."""

    spec: ResponseSpec
    credential_id: CredentialId
    credential_scope: CredentialScope
    origin: Origin  # the upstream, whose CORS fields a response has
    tenant: Tenant
    keys_version: int = 0  # of the list of clients that let it in, as `proxy.access.admission.Access` numbers them

    @property
    def weight_bytes(self) -> int:
        texts = len(self.credential_scope.url) + 2 * len(self.spec.model or "")
        return _OVERHEAD_BYTES + _KEY_BYTES * len(self.spec.keys) + 4 * texts  # up to four bytes a character


class RequestMemo:
    """Known requests by a mark, which is a MAC of all that they were understood from, or of all their bytes; bounded in
    bytes."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._whole = blake2b(b"", key=self._secret, digest_size=32, person=b"whole")
        self._known: Moka[bytes, MemoEntry] = Moka(_MAX_BYTES, weigher=lambda _, known: known.weight_bytes)
        self._wholes: Moka[bytes, MemoEntry] = Moka(_MAX_BYTES, weigher=lambda _, known: known.weight_bytes)
        self._heads: Moka[bytes, bool] = Moka(_MAX_HEADS)
        self.get = self._known.get
        self.get_whole = self._wholes.get

    def mark(self, target: str, own: Identity, body: bytes) -> bytes:
        """Of a request with these fields and no other that matters: equal only for requests that mean the same."""
        # The body runs to the end, so it needs no length.
        state = blake2b(pack((target, own.credentials, own.vector_affecting)), key=self._secret, digest_size=32)
        state.update(body)
        return state.digest()

    def mark_whole(self, sent: bytes) -> bytes:
        """Of a request as it was sent, head and all."""
        state = self._whole.copy()
        state.update(sent)
        return state.digest()

    def put(self, mark: bytes, known: MemoEntry) -> None:
        self._known.set(mark, known)

    def put_whole(self, sent: bytes, known: MemoEntry) -> None:
        """Know a request by all its bytes, if it is not the first with its head: most heads that are new stay alone."""
        head = self.mark_whole(head_of(sent))
        if self._heads.get(head) is None:
            self._heads.set(head, True)
        else:
            self._wholes.set(self.mark_whole(sent), known)

    def has_head(self, head: bytes) -> bool:
        """Whether a request that was to be put whole began with ``head``."""
        return self._heads.get(self.mark_whole(head)) is not None
