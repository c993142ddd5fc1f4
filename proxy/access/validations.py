"""Which credentials the upstream accepted a short time ago, and for what."""

import secrets
from collections.abc import Callable
from hashlib import blake2b
from sys import getsizeof
from typing import NamedTuple

from proxy.access.tenant_map import TenantMap
from proxy.protocol.identities import Identity
from proxy.protocol.keys import Fields, pack
from proxy.upstream.router import Origin

_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404
# What an upstream answers to a key it does not take.
KEY_REFUSALS = frozenset({_UNAUTHORIZED, _FORBIDDEN})
# A client can have any number of credentials accepted or refused, at any number of places: of any length, with an
# upstream that does not check them.
_MAX_ACCEPTED_BYTES, _MAX_REFUSED_BYTES, _MAX_PLACE = 32 * 1024**2, 64 * 1024**2, 4096


class Place(NamedTuple):
    """What a credential was accepted for."""

    url: str  # query included, but for credentials, which are part of who asks
    model: str | None


class Who(NamedTuple):
    """A client at one upstream, by MACs that can't be read back."""

    tenant: bytes  # equal for all requests with one API key: whose share of the proxy they use
    name: bytes  # differs with everything that the upstream may judge: all credentials, and where they are routed


class Validations:
    """What upstreams accepted a short time ago: credentials, for places.

    In memory only, and by a MAC under a key that ends with the process: what is here is of no use elsewhere. (BLAKE2b's
    keyed mode is a MAC as it is, RFC 7693 §2.9.)
    """

    def __init__(self, *, ttl_s: float, clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self.now = clock
        self._secret = secrets.token_bytes(32)
        # Until when it counts as accepted, and when it was refused. None: for all it was accepted for before.
        self._accepted: TenantMap[Place] = TenantMap(_MAX_ACCEPTED_BYTES, weigh=_weight_bytes)
        self._refused: TenantMap[Place | None] = TenantMap(_MAX_REFUSED_BYTES, weigh=_weight_bytes)

    def tenant(self, payer: Fields) -> bytes:
        """The MAC of whose share of the proxy a request uses."""
        return blake2b(pack(payer), key=self._secret, digest_size=16).digest()

    def who(self, tenant: bytes, origin: Origin, identity: Identity) -> Who:
        """What stands for a client at ``origin``."""
        said = pack((origin.name, identity.credentials, identity.vector_affecting))
        return Who(tenant, blake2b(said, key=self._secret, digest_size=32).digest())

    def has_accepted(self, tenant: bytes) -> bool:
        """Whether an upstream has accepted a credential of ``tenant`` in this process."""
        return tenant in self._accepted

    def holds(self, who: Who, place: Place) -> bool:
        return (self._accepted.get(*who, place) or 0.0) > self.now()

    def is_refused(self, who: Who, place: Place) -> bool:
        """Whether the upstream refused the credential, or this place to it, and has not accepted it since."""
        return self._refused_at_s(who, place) is not None

    def _refused_at_s(self, who: Who, place: Place) -> float | None:
        """The last time, if it has not been accepted since."""
        times = (self._refused.get(*who, None), self._refused.get(*who, place))
        return max((time for time in times if time is not None), default=None)

    def accept(self, tenant: bytes) -> None:
        """An upstream answered 2xx to a credential of ``tenant``, wherever."""
        self._accepted.add(tenant)

    def confirm(self, who: Who, place: Place, *, asked_at_s: float) -> None:
        """The upstream itself answered 2xx to what it was asked at ``asked_at_s``, by `now`.

        Such an answer may come after that to a later question, which was a refusal.
        """
        refused_at_s = self._refused_at_s(who, place)
        if _is_too_long(place) or (refused_at_s is not None and asked_at_s < refused_at_s):
            return
        self._refused.remove(*who, None)
        self._refused.remove(*who, place)
        self._accepted.put(*who, place, asked_at_s + self._ttl_s)

    def note(self, who: Who, place: Place, status: int) -> None:
        """The upstream answered something else: a refusal ends what was confirmed, at once."""
        if status in KEY_REFUSALS:
            self._accepted.clear(*who)
            self._refuse(who, None, place)
        elif status == _NOT_FOUND:
            self.refuse(who, place)

    def refuse(self, who: Who, place: Place) -> None:
        """The upstream refused this place to a credential, which may be good for others."""
        self._accepted.remove(*who, place)
        self._refuse(who, place)

    def _refuse(self, who: Who, *places: Place | None) -> None:
        for place in places:
            if place is None or not _is_too_long(place):
                self._refused.put(*who, place, self.now())


def _is_too_long(place: Place) -> bool:
    return len(place.url) + len(place.model or "") > _MAX_PLACE


def _weight_bytes(place: Place | None) -> int:
    return 0 if place is None else getsizeof(place.url) + getsizeof(place.model)
