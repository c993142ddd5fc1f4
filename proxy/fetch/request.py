"""What is fetched: a client request as the proxy understood it, and those of its items that the cache does not have."""

from collections.abc import Mapping, Sequence
from copy import copy
from hashlib import blake2b
from typing import Any, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace
from multidict import CIMultiDict

from proxy.access.validations import Credential
from proxy.fetch.limit_wait import LimitWait
from proxy.protocol import embedding_request, headers, keys
from proxy.protocol.cors import origin_of
from proxy.protocol.directives import Directives
from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.header_kinds import Fields
from proxy.protocol.headers import Headers
from proxy.protocol.identities import Identity
from proxy.protocol.provider import Limits
from proxy.protocol.response_spec import ResponseSpec
from proxy.protocol.tokens import estimated_tokens, weights
from proxy.reservation import MemoryReservation
from proxy.telemetry.tracing import Span
from proxy.tenant import Tenant
from proxy.upstream.router import Origin

_MAX_MODEL_BYTES = 32

LaneName = tuple[str, bytes, bytes]  # the upstream's name, a hash of the credentials, the model or a hash of it


class ClientRequest(Struct, kw_only=True, eq=False):
    """A client's request as the proxy understood it: what every upstream call for its items has in common.

    What only a miss needs is computed when it is first used.
    """

    parsed: EmbeddingRequest
    spec: ResponseSpec
    origin: Origin
    target: str  # without the client's credentials, where the origin has a key of its own
    url: str
    received: Headers  # the client's header fields
    directives: Directives
    identity: Identity  # as the upstream sees it
    scope: Fields  # the clients that share its entries, as in their keys
    credential: Credential
    client: str | None  # for the ledger
    reservation: MemoryReservation  # the memory that the request uses
    epoch: int  # of the model's weights, by which its keys were derived
    limit_wait: LimitWait = field(default_factory=LimitWait)
    span: Span
    _headers: CIMultiDict[str] | None = None
    _group: bytes | None = None
    _lane_name: LaneName | None = None
    _scope_fingerprint: bytes | None = None

    def __repr__(self) -> str:
        return f"<ClientRequest of {len(self.spec.keys)} items>"  # and nothing of their texts

    @property
    def tenant(self) -> Tenant:
        return self.reservation.tenant

    @property
    def headers(self) -> CIMultiDict[str]:
        """The header fields to send upstream. The body is sent uncompressed, however it was received."""
        if self._headers is None:
            self._headers = headers.to_upstream(self.received)
            self._headers.popall("Content-Encoding", None)
        return self._headers

    @property
    def lane_name(self) -> LaneName:
        """Equal for requests that have an upstream's rate limits in common."""
        if self._lane_name is not None:
            return self._lane_name
        credentials = b"" if self.origin.key is not None else self.credential.id.credentials_mac
        model = (self.parsed.model or "").encode()
        if len(model) > _MAX_MODEL_BYTES:  # as long as the client likes; lanes outlive the request
            model = blake2b(model, digest_size=_MAX_MODEL_BYTES).digest()
        self._lane_name = self.origin.name, credentials, model
        return self._lane_name

    @property
    def scope_fingerprint(self) -> bytes:
        """The fingerprint of its scope, for the records of its items."""
        if self._scope_fingerprint is None:
            self._scope_fingerprint = keys.scope_fingerprint(self.scope)
        return self._scope_fingerprint

    def like(
        self,
        parsed: EmbeddingRequest,
        spec: ResponseSpec,
        reservation: MemoryReservation,
        span: Span,
        fields: Mapping[str, str],
    ) -> "ClientRequest":
        """A request that differs from this one only in its items and in the values of ``fields``, which both have.

        What this one computes is computed once for all that are like it.
        """
        received, sent = self.received, self.headers
        if fields:
            received, sent = CIMultiDict(received), sent.copy()
            received.update(fields)
            sent.update((name, value) for name, value in fields.items() if name in sent)
        _ = self.group, self.lane_name, self.scope_fingerprint
        return replace(
            self,
            parsed=parsed,
            spec=spec,
            received=received,
            reservation=reservation,
            limit_wait=LimitWait(),
            span=span,
            _headers=sent,
        )

    def with_headers(self, fields: CIMultiDict[str]) -> "ClientRequest":
        """The same with other header fields."""
        client_request = copy(self)
        client_request._headers = fields  # noqa: SLF001 - of the same class
        return client_request

    @property
    def group(self) -> bytes:
        """Equal for requests that may be merged into one upstream call: they differ in nothing but their items."""
        if self._group is None:
            self._group = keys.group(
                self.parsed,
                url=self.url,
                credentials=self.identity.credentials,
                vector_headers=self.identity.vector_affecting,
                page=origin_of(self.received),
            )
        return self._group

    def request(self, wanted: list[bytes], policy: "Policy") -> "FetchRequest":
        """A request to fetch the ``wanted`` keys. Raises `InvalidRequest` for header fields that can't be sent."""
        _ = self.headers
        return FetchRequest(self, wanted, policy)

    def items(self, wanted: Sequence[bytes]) -> list[Any]:
        """The items with the ``wanted`` keys. Of items with equal keys, the first in input order."""
        by_key = dict(zip(reversed(self.spec.keys), reversed(self.parsed.items), strict=True))
        return [by_key[key] for key in wanted]

    def is_own_body(self, body: bytes) -> bool:
        """Whether ``body``, which was sent upstream, is the client's own to the byte.

        Only the response to such a body may be relayed: it may quote any item, and refers to items by their index.
        """
        return body == self.parsed.body


class Policy(NamedTuple):
    """How a fetch treats the cache and other requests."""

    min_stored_at_s: float  # Unix time; an entry that was stored earlier is not used
    may_join: bool = True  # may use entries in memory and fetches of other requests; False: asks the upstream
    is_stored: bool = True
    overwrite: bool = False
    may_merge: bool = True
    may_be_held: bool = True  # may wait for the upstream's rate limit
    is_budgeted: bool = True  # False: it only validates a credential, for items that are cached

    @property
    def storing(self) -> tuple[bool, bool]:
        """What it says about storing: equal for results that one write of the cache may store."""
        return self.is_stored, self.overwrite

    def refreshing(self) -> "Policy":
        """Fetch from the upstream and replace what is stored."""
        return self._replace(may_join=False, overwrite=True)

    def private(self) -> "Policy":
        """For this client alone: neither taken from the cache or other requests nor stored."""
        return self._replace(may_join=False, is_stored=False)


class FetchRequest(Struct, eq=False):
    """``keys`` are distinct, and some or all of those of ``client_request``, in input order.

    It goes from the route to the upstream as it is: the batcher merges those of equal `ClientRequest.group`.
    """

    client_request: ClientRequest
    keys: list[bytes]
    policy: Policy
    _items: list[Any] | None = None
    _body: bytes | None = None
    _weights: list[int] | None = None
    _tokens: int | None = None

    def __repr__(self) -> str:
        return f"<FetchRequest of {len(self.keys)} keys>"  # and nothing of their texts

    @property
    def is_whole(self) -> bool:
        """Whether it is for all items of the client's body, each of them once: then that body itself is sent."""
        return len(self.keys) == len(self.client_request.spec.keys)

    @property
    def items(self) -> list[Any]:
        if self._items is None:
            self._items = self.client_request.parsed.items if self.is_whole else self.client_request.items(self.keys)
        return self._items

    @property
    def body(self) -> bytes:
        """Requests just these items."""
        if self._body is None:
            parsed = self.client_request.parsed
            self._body = parsed.body if self.is_whole else embedding_request.reduced_body(parsed, self.items)
        return self._body

    @property
    def weights(self) -> list[int]:
        """The weight of each item (`proxy.protocol.tokens`)."""
        if self._weights is None:
            self._weights = weights(self.client_request.parsed.kind, self.items)
        return self._weights

    @property
    def tokens(self) -> int:
        """At most so many tokens, as far as that can be estimated."""
        if self._tokens is None:
            self._tokens = sum(estimated_tokens(self.client_request.parsed.kind, self.weights))
        return self._tokens

    @property
    def size(self) -> Limits:
        """What it takes of the limits of one call."""
        return Limits(len(self.keys), self.tokens, len(self.body))

    def only(self, wanted: list[bytes]) -> "FetchRequest":
        """The part for the ``wanted`` keys. What is keyed as a whole has no smaller part than all of it."""
        if len(wanted) == len(self.keys) or (wanted and self.client_request.spec.is_keyed_whole):
            return self
        by_key = dict(zip(self.keys, self.items, strict=True))
        return self._with(wanted, [by_key[key] for key in wanted])

    def part(self, run: slice) -> "FetchRequest":
        """The part for a run of the keys."""
        return self._with(self.keys[run], self.items[run])

    def _with(self, keys: list[bytes], items: list[Any]) -> "FetchRequest":
        return FetchRequest(self.client_request, keys, self.policy, items)

    def alone(self, key: bytes) -> "FetchRequest":
        """The part for one key, to be sent in a call of its own."""
        return replace(self.only([key]), policy=self.policy._replace(may_merge=False))

    @property
    def lease_keys(self) -> list[bytes]:
        """The keys to lease. What is keyed as a whole is fetched as a whole, so its first key represents all."""
        return self.keys[:1] if self.client_request.spec.is_keyed_whole else self.keys

    def covered_by(self, leased: list[bytes]) -> list[bytes]:
        """The keys that may be fetched under leases on ``leased``, which are some of `lease_keys`."""
        return self.keys if leased and self.client_request.spec.is_keyed_whole else leased
