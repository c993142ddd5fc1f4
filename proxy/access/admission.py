"""Who may be served a cached vector, and with whose credentials the upstream is asked.

Either the client's own credentials go upstream, and the upstream says by its answers what they are worth; or the proxy
holds the key, and a list of its own says who may ask.
"""

import re
from typing import NamedTuple

from proxy.access.client_keys import ClientKeys
from proxy.access.validations import CredentialId, CredentialScope, Validations
from proxy.budget import Tenant
from proxy.errors import Unauthorized
from proxy.protocol import assertions, headers, identities, query
from proxy.protocol.cors import origin_of
from proxy.protocol.headers import Headers
from proxy.protocol.hosts import LOOPBACK_HOSTS
from proxy.protocol.identities import Identity
from proxy.protocol.keys import Fields
from proxy.upstream.router import Origin

# No header has an empty name, so that no credentials are like these.
_EVERYBODY: Fields = [("", "share=all")]
_OWN_KEY: Fields = [("", "upstream key of the proxy")]
_BEARER = re.compile(r"Bearer +(\S+) *", re.IGNORECASE)
_KEY_FIELDS = ("x-api-key", "api-key")
# By which a tenant is known, where several fields of a request look like credentials; the first that is there.
_TENANT_FIELDS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")


class Admission(NamedTuple):
    """Who got in: a client of the operator's list, if there is one, in its ``keys_version``."""

    keys_version: int = 0
    client: str | None = None


class Access:
    """Who gets in, whose entries a request sees, and what credentials it goes on with."""

    def __init__(
        self,
        *,
        shares_all: bool,
        owns_key: bool,
        client_keys: ClientKeys | None,
        validations: Validations,
        key_headers: frozenset[str] = frozenset(),
        cors_origins: frozenset[str] = frozenset(),
        neutral_headers: frozenset[str] = frozenset(),
    ) -> None:
        self.is_shared = shares_all or owns_key  # one scope for all
        self.owns_key = owns_key
        self._client_keys = client_keys
        self._validations = validations
        self._key_headers = key_headers
        self._cors_origins = cors_origins
        self.neutral_headers = neutral_headers

    def identity(self, given: Headers, target: str, origin: Origin | None = None) -> Identity:
        """Who the client is, by its headers and the query of its ``target``, and what else of the headers matters, to
        ``origin`` if it is known yet."""
        neutral = self.neutral_headers if origin is None else self.neutral_headers | origin.neutral_headers
        found = identities.identity(given, self._key_headers, neutral, in_query=query.credentials(target))
        return found._replace(is_signed=True) if query.is_signed(target) else found

    @property
    def keys_version(self) -> int:
        """Of the list of clients: whom `admit` let in, it lets in for as long as this stays."""
        return 0 if self._client_keys is None else self._client_keys.keys_version

    def admit(self, given: Headers) -> Admission:
        """Which client this is, if there is a list.

        Raises `Unauthorized` if the proxy has a list and this is none of them; or if it has none, and a web page may be
        asking, which any page can make a browser on this machine do.
        """
        self.admit_preflight(given)
        if self._client_keys is None:
            return Admission()
        for key in _keys_in(given):
            if (client := self._client_keys.name_of(key)) is not None:
                return Admission(self.keys_version, client)
        raise Unauthorized("This proxy does not know the API key. Its operator can make one: embedding-proxy keys add.")

    def admit_preflight(self, given: Headers) -> None:
        """Likewise for a CORS preflight, which never has a key to show. Raises `Unauthorized`."""
        if self.owns_key and self._client_keys is None:
            _forbid_web_pages(given, self._cors_origins)

    def outgoing(self, given: Headers, own: Identity, origin: Origin | None = None) -> Identity:
        """Who the upstream will see, and what else of the headers it will; ``own`` is the client's own identity."""
        if not self.owns_key:
            return own
        return self.identity(headers.without_credentials(given), "", origin)._replace(credentials=_OWN_KEY)

    def may_serve(self, credential_id: CredentialId, credential_scope: CredentialScope) -> bool:
        """Whether a credential gets cached entries without another question to the upstream: the proxy holds the key
        itself, or the upstream accepted the credential for this scope a short time ago."""
        return self.owns_key or self._validations.is_confirmed(credential_id, credential_scope)

    def may_read(self, upstream: Origin, given: Headers) -> bool:
        """Whether it is known if the web page that asks, where one does, may read a response.

        If not, the page's browser would drop a hit, so the upstream is asked first, as for a credential that nobody has
        confirmed. That is not done in a shared scope, where entries are not served while the upstream has no answer.
        """
        return self.is_shared or upstream.cors.knows(origin_of(given))

    def tenant(self, own: Identity, admission: Admission) -> Tenant:
        """The tenant that a request's memory, queue entries and upstream calls count against. ``own`` is the client's
        own identity."""
        name = self._validations.tenant(_tenant_fields(own, admission))
        is_verified = self.owns_key or admission.client is not None or self._validations.has_accepted(name)
        return Tenant(name, is_unverified=not is_verified)

    def scope(self, identity: Identity) -> Fields:
        """Whose entries these are."""
        if self.is_shared and not self.owns_key:
            return _EVERYBODY
        return assertions.scope_of(identity.credentials)

    def is_shared_scope(self, identity: Identity) -> bool:
        """Whether others, with other credentials, see the same entries."""
        return self.is_shared or self.scope(identity) != identity.credentials


def _tenant_fields(own: Identity, admission: Admission) -> Fields:
    """What identifies a tenant. Of the fields that look like credentials only the API key counts, because a client can
    add further ones to a valid key."""
    if admission.client is not None:
        return [("client", admission.client)]
    for name in _TENANT_FIELDS:
        if found := [field for field in own.credentials if field[0] == name]:
            return found
    return own.credentials


def _forbid_web_pages(given: Headers, allowed: frozenset[str]) -> None:
    """Refuse web pages but those of ``allowed`` origins, and any that reaches this machine by another name: by DNS
    rebinding, a page's own name resolves to this machine, and the browser takes the proxy for the page's own server."""
    if origin_of(given) not in allowed and (
        "Origin" in given or given.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}
    ):
        raise Unauthorized("This proxy holds a key, and answers no web page that --cors-origins does not name.")
    host = given.get("Host", "").rpartition(":")[0] or given.get("Host", "")
    if host.strip("[]").lower() not in LOOPBACK_HOSTS:
        raise Unauthorized("This proxy holds a key, and is reached as localhost only.")


def _keys_in(given: Headers) -> list[str]:
    found = [match[1] for value in given.getall("Authorization", ()) if (match := _BEARER.fullmatch(value))]
    return found + [value for name in _KEY_FIELDS for value in given.getall(name, ())]
