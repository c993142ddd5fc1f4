"""Which requests may be served a cached vector, and with which credentials they go upstream.

Either the client's own credentials go upstream, and the upstream's responses show whether they are valid; or the proxy
has the upstream's key, and authenticates clients by its own list of client keys.
"""

import re
from typing import NamedTuple

from proxy.access.client_keys import ClientKeys
from proxy.access.pseudonyms import Pseudonyms
from proxy.access.validations import Credential, Validations
from proxy.errors import Unauthorized
from proxy.protocol import assertions, headers, identities, query
from proxy.protocol.cors import origin_of
from proxy.protocol.header_kinds import Fields
from proxy.protocol.headers import Headers
from proxy.protocol.hosts import LOOPBACK_HOSTS
from proxy.protocol.identities import Identity
from proxy.tenant import Tenant
from proxy.upstream.router import Origin

# No header field has an empty name, so a client can't send credentials that equal these.
EVERYBODY: Fields = [("", "share=all")]
OWN_KEY: Fields = [("", "upstream key of the proxy")]
_BEARER = re.compile(r"Bearer +(\S+) *", re.IGNORECASE)
_HOST = re.compile(r"(\[[^][]*\]|[^][:]*)(?::\d*)?")  # RFC 9110 §7.2
_KEY_FIELDS = ("x-api-key", "api-key")
# The first of these that a request has identifies its tenant, if several fields look like credentials.
_TENANT_FIELDS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")


class Admission(NamedTuple):
    """An admitted request: its client, if the operator has a list, and `Access.access_version` at that time."""

    access_version: int = 0
    client: str | None = None


class Access:
    """Which requests are admitted, which entries they share, and which credentials they are forwarded with."""

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
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        self.is_shared = shares_all or owns_key  # all clients share one scope
        self.owns_key = owns_key
        self._client_keys = client_keys
        self._validations = validations
        self._key_headers = key_headers
        self._cors_origins = cors_origins
        self.neutral_headers = neutral_headers
        self._pseudonyms = pseudonyms
        self.epochs_begun = 0  # since the start, as far as this process has seen

    def identity(self, given: Headers, target: str, origin: Origin | None = None) -> Identity:
        """The credentials and vector-affecting fields in the headers and in the query of ``target``. If ``origin`` is
        known, its provider's neutral fields are left out as well."""
        neutral = self.neutral_headers if origin is None else self.neutral_headers | origin.neutral_headers
        found = identities.identity(given, self._key_headers, neutral, in_query=query.credentials(target))
        return found._replace(is_signed=True) if query.is_signed(target) else found

    @property
    def access_version(self) -> int:
        """While it does not change, `admit` admits the same clients, and requests keep the same cache keys."""
        return self.epochs_begun + (0 if self._client_keys is None else self._client_keys.keys_version)

    def outdate_requests(self) -> None:
        """An epoch has begun: items have new keys from now on."""
        self.epochs_begun += 1

    def admit(self, given: Headers) -> Admission:
        """Identify the client, if there is a list of clients.

        Raises `Unauthorized` if the request has no key of that list. If there is no list and the proxy has the
        upstream's key, raises it if the request may come from a web page: any page can make a browser on this machine
        send requests.
        """
        self.admit_preflight(given)
        if self._client_keys is None:
            return Admission(self.access_version)
        for key in _keys_in(given):
            if (client := self._client_keys.name_of(key)) is not None:
                return Admission(self.access_version, client)
        raise Unauthorized("Unknown API key. The operator of this proxy can create one: embedding-proxy keys add.")

    def admit_preflight(self, given: Headers) -> None:
        """The same check for a CORS preflight, which never has a key. Raises `Unauthorized`."""
        if self.owns_key and self._client_keys is None:
            _forbid_web_pages(given, self._cors_origins)

    def outgoing(self, given: Headers, own: Identity, origin: Origin | None = None) -> Identity:
        """The identity that the request has upstream. ``own`` is the client's own identity."""
        if not self.owns_key:
            return own
        return self.identity(headers.without_credentials(given), "", origin)._replace(credentials=OWN_KEY)

    def may_serve(self, credential: Credential) -> bool:
        """Whether cached entries are served without asking the upstream again: the proxy has the key itself, or the
        upstream recently accepted ``credential``."""
        return self.owns_key or self._validations.is_confirmed(credential)

    def may_read(self, upstream: Origin, given: Headers) -> bool:
        """Whether the CORS fields of a hit are known, if a web page sent the request.

        If not, the page's browser would reject a hit, so the upstream is asked first, as for a credential that is not
        confirmed. A shared scope is exempt, because then its entries would not be served while the upstream does not
        respond.
        """
        return self.is_shared or upstream.cors.knows(origin_of(given))

    def tenant(self, own: Identity, admission: Admission) -> Tenant:
        """The tenant that a request's memory, queue entries and upstream calls count against. ``own`` is the client's
        own identity."""
        name = self._validations.tenant(_tenant_fields(own, admission))
        is_verified = self.owns_key or admission.client is not None or self._validations.has_accepted(name)
        return Tenant(name, is_unverified=not is_verified)

    def client(self, own: Identity, admission: Admission) -> str | None:
        """The client as the ledger knows it: its name in the list of clients, or a pseudonym of its credential."""
        if admission.client is not None or self._pseudonyms is None:
            return admission.client
        return self._pseudonyms.of(_tenant_fields(own, admission))

    def scope(self, identity: Identity) -> Fields:
        """The clients that share the request's entries, as part of its cache keys."""
        if self.is_shared and not self.owns_key:
            return EVERYBODY
        return assertions.scope_of(identity.credentials)

    def is_shared_scope(self, identity: Identity) -> bool:
        """Whether clients with other credentials share the same entries."""
        return self.is_shared or self.scope(identity) != identity.credentials


def _tenant_fields(own: Identity, admission: Admission) -> Fields:
    """The fields that identify a tenant. If several look like credentials, only the API key counts, because a client
    can add others to a valid key."""
    if admission.client is not None:
        return [("client", admission.client)]
    for name in _TENANT_FIELDS:
        if found := [field for field in own.credentials if field[0] == name]:
            return found
    return own.credentials


def _forbid_web_pages(given: Headers, allowed: frozenset[str]) -> None:
    """Raises `Unauthorized` for web pages of origins that are not ``allowed``, and for hosts other than this machine.

    The latter may be DNS rebinding: a page's own name resolves to this machine, so the browser treats the proxy as
    the page's own server.
    """
    if origin_of(given) not in allowed and (
        "Origin" in given or given.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}
    ):
        raise Unauthorized("This proxy has an API key, so it accepts only web pages that --cors-origins lists.")
    host = _HOST.fullmatch(given.get("Host", ""))
    if host is None or host[1].strip("[]").lower() not in LOOPBACK_HOSTS:
        raise Unauthorized("This proxy has an API key and no client keys, so it accepts requests to localhost only.")


def _keys_in(given: Headers) -> list[str]:
    found = [match[1] for value in given.getall("Authorization", ()) if (match := _BEARER.fullmatch(value))]
    return found + [value for name in _KEY_FIELDS for value in given.getall(name, ())]
