"""Which credentials the upstream accepted a short time ago, and for what."""

import secrets
from collections.abc import Callable
from hashlib import blake2b
from http import HTTPStatus
from sys import getsizeof
from typing import NamedTuple

from proxy.access.tenant_map import TenantMap
from proxy.protocol.identities import Identity
from proxy.protocol.keys import Fields, pack
from proxy.upstream.router import Origin

# Statuses by which an upstream refuses an API key.
CREDENTIAL_REFUSALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
# A client can have any number of credentials accepted or refused, at any number of places: of any length, with an
# upstream that does not check them.
_MAX_ACCEPTED_BYTES, _MAX_REFUSED_BYTES, _MAX_PLACE = 32 * 1024**2, 64 * 1024**2, 4096


class CredentialScope(NamedTuple):
    """What a credential was accepted for."""

    url: str  # query included, but for credentials, which are part of who asks
    model: str | None


class CredentialId(NamedTuple):
    """A client at one upstream, by MACs that can't be read back."""

    tenant: bytes  # equal for all requests with one API key: whose share of the proxy they use
    credentials_mac: (
        bytes  # differs with everything that the upstream may judge: all credentials, and where they are routed
    )


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
        self._accepted: TenantMap[CredentialScope] = TenantMap(_MAX_ACCEPTED_BYTES, weigh=_weight_bytes)
        self._refused: TenantMap[CredentialScope | None] = TenantMap(_MAX_REFUSED_BYTES, weigh=_weight_bytes)

    def tenant(self, tenant_fields: Fields) -> bytes:
        """The MAC of whose share of the proxy a request uses."""
        return blake2b(pack(tenant_fields), key=self._secret, digest_size=16).digest()

    def credential_id(self, tenant: bytes, origin: Origin, identity: Identity) -> CredentialId:
        """What stands for a client at ``origin``."""
        said = pack((origin.name, identity.credentials, identity.vector_affecting))
        return CredentialId(tenant, blake2b(said, key=self._secret, digest_size=32).digest())

    def has_accepted(self, tenant: bytes) -> bool:
        """Whether an upstream has accepted a credential of ``tenant`` in this process."""
        return tenant in self._accepted

    def is_confirmed(self, credential_id: CredentialId, credential_scope: CredentialScope) -> bool:
        return (self._accepted.get(*credential_id, credential_scope) or 0.0) > self.now()

    def is_refused(self, credential_id: CredentialId, credential_scope: CredentialScope) -> bool:
        """Whether the upstream refused the credential, or this place to it, and has not accepted it since."""
        return self._refused_at_s(credential_id, credential_scope) is not None

    def _refused_at_s(self, credential_id: CredentialId, credential_scope: CredentialScope) -> float | None:
        """The last time, if it has not been accepted since."""
        times = (self._refused.get(*credential_id, None), self._refused.get(*credential_id, credential_scope))
        return max((time for time in times if time is not None), default=None)

    def accept(self, tenant: bytes) -> None:
        """An upstream answered 2xx to a credential of ``tenant``, wherever."""
        self._accepted.add(tenant)

    def confirm(self, credential_id: CredentialId, credential_scope: CredentialScope, *, asked_at_s: float) -> None:
        """The upstream itself answered 2xx to what it was asked at ``asked_at_s``, by `now`.

        Such an answer may come after that to a later question, which was a refusal.
        """
        refused_at_s = self._refused_at_s(credential_id, credential_scope)
        if _is_too_long(credential_scope) or (refused_at_s is not None and asked_at_s < refused_at_s):
            return
        self._refused.remove(*credential_id, None)
        self._refused.remove(*credential_id, credential_scope)
        self._accepted.put(*credential_id, credential_scope, asked_at_s + self._ttl_s)

    def note(self, credential_id: CredentialId, credential_scope: CredentialScope, status: int) -> None:
        """The upstream answered something else: a refusal ends what was confirmed, at once."""
        if status in CREDENTIAL_REFUSALS:
            self._accepted.clear(*credential_id)
            self._refuse(credential_id, None, credential_scope)
        elif status == HTTPStatus.NOT_FOUND:
            self.refuse(credential_id, credential_scope)

    def refuse(self, credential_id: CredentialId, credential_scope: CredentialScope) -> None:
        """The upstream refused this place to a credential, which may be good for others."""
        self._accepted.remove(*credential_id, credential_scope)
        self._refuse(credential_id, credential_scope)

    def _refuse(self, credential_id: CredentialId, *places: CredentialScope | None) -> None:
        for credential_scope in places:
            if credential_scope is None or not _is_too_long(credential_scope):
                self._refused.put(*credential_id, credential_scope, self.now())


def _is_too_long(credential_scope: CredentialScope) -> bool:
    return len(credential_scope.url) + len(credential_scope.model or "") > _MAX_PLACE


def _weight_bytes(credential_scope: CredentialScope | None) -> int:
    return 0 if credential_scope is None else getsizeof(credential_scope.url) + getsizeof(credential_scope.model)
