"""Who may be served a cached vector, and with whose credentials the upstream is asked.

Either the client's own credentials go upstream, and the upstream says by its answers what they are worth; or the proxy
holds the key, and a list of its own says who may ask.
"""

import re
import secrets
from collections.abc import Callable
from hashlib import blake2b
from sys import getsizeof
from typing import NamedTuple

from proxy import assertions, headers, query
from proxy.clientkeys import ClientKeys
from proxy.config import THIS_MACHINE
from proxy.cors import origin_of
from proxy.errors import Unauthorized
from proxy.headers import Headers, Identity
from proxy.keys import Fields, pack
from proxy.origins import Origin
from proxy.tenantmap import TenantMap

_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404
# What an upstream answers to a key it does not take.
KEY_REFUSALS = frozenset({_UNAUTHORIZED, _FORBIDDEN})
# A client can have any number of credentials accepted or refused, at any number of places: of any length, with an
# upstream that does not check them.
_MAX_ACCEPTED_BYTES, _MAX_REFUSED_BYTES, _MAX_PLACE = 32 * 1024**2, 64 * 1024**2, 4096
# No header has an empty name, so that no credentials are like these.
_EVERYBODY: Fields = [("", "share=all")]
_OWN_KEY: Fields = [("", "upstream key of the proxy")]
_BEARER = re.compile(r"Bearer +(\S+) *", re.IGNORECASE)
_KEY_FIELDS = ("x-api-key", "api-key")
# By which a tenant is known, where several fields of a request look like credentials; the first that is there.
_TENANT_FIELDS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")


class Place(NamedTuple):
    """What a credential was accepted for."""

    url: str  # query included, but for credentials, which are part of who asks
    model: str | None


class Who(NamedTuple):
    """A client at one upstream, by MACs that can't be read back."""

    tenant: bytes  # equal for all requests with one API key: whose share of the proxy they use
    name: bytes  # differs with everything that the upstream may judge: all credentials, and where they are routed


class Admission(NamedTuple):
    """Who got in: a client of the operator's list, if there is one, in its ``edition``."""

    edition: int = 0
    client: str | None = None


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


class Access:
    """Who gets in, whose entries a request sees, and what credentials it goes on with."""

    def __init__(
        self,
        *,
        shares_all: bool,
        owns_key: bool,
        client_keys: ClientKeys | None,
        key_headers: frozenset[str] = frozenset(),
        cors_origins: frozenset[str] = frozenset(),
        neutral_headers: frozenset[str] = frozenset(),
    ) -> None:
        self.is_shared = shares_all or owns_key  # one scope for all
        self.owns_key = owns_key
        self._client_keys = client_keys
        self._key_headers = key_headers
        self._cors_origins = cors_origins
        self.neutral_headers = neutral_headers

    def identity(self, given: Headers, target: str, origin: Origin | None = None) -> Identity:
        """Who the client is, by its headers and the query of its ``target``, and what else of the headers matters, to
        ``origin`` if it is known yet."""
        neutral = self.neutral_headers if origin is None else self.neutral_headers | origin.neutral_headers
        found = headers.identity(given, self._key_headers, neutral, in_query=query.credentials(target))
        return found._replace(is_signed=True) if query.is_signed(target) else found

    @property
    def edition(self) -> int:
        """Of the list of clients: whom `admit` let in, it lets in for as long as this stays."""
        return 0 if self._client_keys is None else self._client_keys.edition

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
                return Admission(self.edition, client)
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

    def may_read(self, upstream: Origin, given: Headers) -> bool:
        """Whether it is known if the web page that asks, where one does, may read a response.

        If not, the page's browser would drop a hit, so the upstream is asked first, as for a credential that nobody has
        confirmed. That is not done in a shared scope, where entries are not served while the upstream has no answer.
        """
        return self.is_shared or upstream.cors.knows(origin_of(given))

    def payer(self, own: Identity, admission: Admission) -> Fields:
        """Whose share of the proxy a request uses: of the fields that look like credentials the API key alone counts,
        since anybody can add further ones to a good key. ``own`` is the client's own identity."""
        if admission.client is not None:
            return [("client", admission.client)]
        for name in _TENANT_FIELDS:
            if found := [field for field in own.credentials if field[0] == name]:
                return found
        return own.credentials

    def is_stranger(self, admission: Admission, *, has_been_accepted: bool) -> bool:
        """Whether nobody has vouched for a credential: no list, no upstream."""
        return not (self.owns_key or admission.client is not None or has_been_accepted)

    def scope(self, identity: Identity) -> Fields:
        """Whose entries these are."""
        if self.is_shared and not self.owns_key:
            return _EVERYBODY
        return assertions.scope_of(identity.credentials)

    def is_shared_by(self, identity: Identity) -> bool:
        """Whether others, with other credentials, see the same entries."""
        return self.is_shared or self.scope(identity) != identity.credentials


def _forbid_web_pages(given: Headers, allowed: frozenset[str]) -> None:
    """Refuse web pages but those of ``allowed`` origins, and any that reaches this machine by another name: by DNS
    rebinding, a page's own name resolves to this machine, and the browser takes the proxy for the page's own server."""
    if origin_of(given) not in allowed and (
        "Origin" in given or given.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}
    ):
        raise Unauthorized("This proxy holds a key, and answers no web page that --cors-origins does not name.")
    host = given.get("Host", "").rpartition(":")[0] or given.get("Host", "")
    if host.strip("[]").lower() not in THIS_MACHINE:
        raise Unauthorized("This proxy holds a key, and is reached as localhost only.")


def _keys_in(given: Headers) -> list[str]:
    found = [match[1] for value in given.getall("Authorization", ()) if (match := _BEARER.fullmatch(value))]
    return found + [value for name in _KEY_FIELDS for value in given.getall(name, ())]
