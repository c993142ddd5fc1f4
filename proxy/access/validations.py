"""Which credentials the upstream accepted recently, and for which scope."""

import secrets
from collections.abc import Callable
from hashlib import blake2b
from http import HTTPStatus
from sys import getsizeof

from msgspec import Struct

from proxy.access.tenant_map import TenantMap
from proxy.protocol.header_kinds import Fields
from proxy.protocol.identities import Identity
from proxy.protocol.keys import pack
from proxy.upstream.router import Origin

# Statuses by which an upstream refuses an API key.
CREDENTIAL_REFUSALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
# A client can get any number of credentials accepted or refused, for any number of scopes, and of any length if the
# upstream does not check them.
_MAX_ACCEPTED_BYTES, _MAX_REFUSED_BYTES, _MAX_SCOPE_CHARS = 32 * 1024**2, 64 * 1024**2, 4096


class CredentialScope(Struct, frozen=True, gc=False):
    """What a credential was accepted for. ``model`` is None for a request that names none."""

    url: str  # query included, except credentials, which are part of `CredentialId`
    model: str | None


class CredentialId(Struct, frozen=True, gc=False):
    """A client of one upstream, as MACs, which can't be reversed."""

    tenant: bytes  # equal for all requests with the same API key: their resource use counts together
    credentials_mac: bytes  # of everything that may decide acceptance: all credentials, and the fields that route them

    @property
    def path(self) -> tuple[bytes, bytes]:
        """Where the scopes of this client are in a `TenantMap`."""
        return self.tenant, self.credentials_mac


class Credential(Struct, frozen=True, gc=False):
    """A client's credentials, and the scope that a request needs them accepted for."""

    id: CredentialId
    scope: CredentialScope


class Validations:
    """The credentials that upstreams accepted recently, each for a scope.

    In memory only, and as MACs under a key that exists only in this process, so the contents are useless elsewhere.
    Keyed BLAKE2b is a MAC (RFC 7693 §2.9).
    """

    def __init__(self, *, ttl_s: float, clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self.now = clock
        self._secret = secrets.token_bytes(32)
        # When an acceptance expires, and when a refusal came. A refusal's scope None stands for all scopes that the
        # credential was accepted for before.
        self._accepted: TenantMap[CredentialScope] = TenantMap(_MAX_ACCEPTED_BYTES, weigh=_weight_bytes)
        self._refused: TenantMap[CredentialScope | None] = TenantMap(_MAX_REFUSED_BYTES, weigh=_weight_bytes)

    def tenant(self, tenant_fields: Fields) -> bytes:
        """The MAC of the fields that identify a tenant."""
        return blake2b(pack(tenant_fields), key=self._secret, digest_size=16).digest()

    def credential_id(self, tenant: bytes, origin: Origin, identity: Identity) -> CredentialId:
        """The identifier of a client's credentials at ``origin``."""
        packed = pack((origin.name, identity.credentials, identity.vector_affecting))
        return CredentialId(tenant, blake2b(packed, key=self._secret, digest_size=32).digest())

    def has_accepted(self, tenant: bytes) -> bool:
        """Whether an upstream has accepted a credential of ``tenant`` in this process."""
        return tenant in self._accepted

    def is_confirmed(self, credential: Credential) -> bool:
        """Whether the upstream accepted the credential for this scope within the TTL, and did not refuse it since."""
        return (self._accepted.get(*credential.id.path, credential.scope) or 0.0) > self.now()

    def is_refused(self, credential: Credential) -> bool:
        """Whether the upstream refused the credential, for this scope or at all, and has not accepted it since."""
        return self._refused_at_s(credential) is not None

    def _refused_at_s(self, credential: Credential) -> float | None:
        """The time of the last refusal, unless the credential was accepted since."""
        if credential.id.tenant not in self._refused:  # the usual case
            return None
        path = credential.id.path
        times = (self._refused.get(*path, None), self._refused.get(*path, credential.scope))
        return max((time for time in times if time is not None), default=None)

    def accept(self, tenant: bytes) -> None:
        """An upstream responded 2xx to a credential of ``tenant``, for any scope."""
        self._accepted.add(tenant)

    def confirm(self, credential: Credential, *, asked_at_s: float) -> None:
        """The upstream itself, not a fallback, responded 2xx to a call that was sent at ``asked_at_s``, by `now`.

        This response may arrive after the refusal of a call that was sent later. Then the refusal counts.
        """
        refused_at_s = self._refused_at_s(credential)
        if _is_too_long(credential.scope) or (refused_at_s is not None and asked_at_s < refused_at_s):
            return
        if refused_at_s is not None:
            self._refused.remove(*credential.id.path, None)
            self._refused.remove(*credential.id.path, credential.scope)
        self._accepted.put(*credential.id.path, credential.scope, asked_at_s + self._ttl_s)

    def note(self, credential: Credential, status: int) -> None:
        """The upstream responded with an error status. A refusal ends a confirmation immediately."""
        if status in CREDENTIAL_REFUSALS:
            self._accepted.clear(*credential.id.path)
            self._refuse(credential.id, None, credential.scope)
        elif status == HTTPStatus.NOT_FOUND:
            self.refuse(credential)

    def refuse(self, credential: Credential) -> None:
        """The upstream refused this scope to a credential, which may still be valid for others."""
        self._accepted.remove(*credential.id.path, credential.scope)
        self._refuse(credential.id, credential.scope)

    def _refuse(self, credential_id: CredentialId, *scopes: CredentialScope | None) -> None:
        for scope in scopes:
            if scope is None or not _is_too_long(scope):
                self._refused.put(*credential_id.path, scope, self.now())


def _is_too_long(scope: CredentialScope) -> bool:
    return len(scope.url) + len(scope.model or "") > _MAX_SCOPE_CHARS


def _weight_bytes(scope: CredentialScope | None) -> int:
    return 0 if scope is None else getsizeof(scope.url) + getsizeof(scope.model)
