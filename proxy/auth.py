"""Who may be served a cached vector, and with whose credentials the upstream is asked.

Either the client's own credentials go upstream, and the upstream says by its answers what they are worth; or the proxy
holds the key, and a list of its own says who may ask.
"""

import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

from proxy import assertions, headers, query
from proxy.clientkeys import ClientKeys
from proxy.config import THIS_MACHINE
from proxy.cors import origin_of
from proxy.errors import Unauthorized
from proxy.headers import Headers, Identity
from proxy.keys import Fields, pack
from proxy.origins import Origin

_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404
# What an upstream answers to a key it does not take.
KEY_REFUSALS = frozenset({_UNAUTHORIZED, _FORBIDDEN})
# A client can have any number of credentials accepted, at any number of places.
_MAX_CREDENTIALS, _MAX_PLACES, _MAX_PLACE = 100_000, 256, 4096
# No header has an empty name, so that no credentials are like these.
_EVERYBODY: Fields = [("", "share=all")]
_OWN_KEY: Fields = [("", "upstream key of the proxy")]
_BEARER = re.compile(r"Bearer +(\S+) *", re.IGNORECASE)
_KEY_FIELDS = ("x-api-key", "api-key")


class Place(NamedTuple):
    """What a credential was accepted for."""

    url: str  # query included, but for credentials, which are part of who asks
    model: str | None


class Validations:
    """What upstreams accepted a short time ago: credentials, for places.

    In memory only, and by a MAC under a key that ends with the process: what is here is of no use elsewhere. (BLAKE2b's
    keyed mode is a MAC as it is, RFC 7693 §2.9.)
    """

    def __init__(self, *, ttl_s: float, clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self.now = clock
        self._secret = secrets.token_bytes(32)
        self._until: OrderedDict[bytes, dict[Place, float]] = OrderedDict()
        # When it was refused what for. None: for all it was accepted for before.
        self._refused: OrderedDict[bytes, dict[Place | None, float]] = OrderedDict()

    def name(self, origin: Origin, identity: Identity) -> bytes:
        """What stands for a client at ``origin``; not to be read back."""
        said = pack((origin.name, identity.credentials, identity.vector_affecting))
        return blake2b(said, key=self._secret, digest_size=32).digest()

    def holds(self, who: bytes, place: Place) -> bool:
        return self._until.get(who, {}).get(place, 0.0) > self.now()

    def is_refused(self, who: bytes, place: Place) -> bool:
        """Whether the upstream refused the credential, or this place to it, and has not accepted it since."""
        refused = self._refused.get(who)
        return refused is not None and (None in refused or place in refused)

    def confirm(self, who: bytes, place: Place, *, asked_at_s: float) -> None:
        """The upstream itself answered 2xx to what it was asked at ``asked_at_s``, by `now`.

        Such an answer may come after that to a later question, which was a refusal.
        """
        refused = self._refused.get(who, {})
        if asked_at_s < max(refused.get(None, asked_at_s), refused.get(place, asked_at_s)) or _is_too_long(place):
            return
        refused.pop(None, None)
        refused.pop(place, None)
        if not refused:
            self._refused.pop(who, None)
        places = self._until.setdefault(who, {})
        self._until.move_to_end(who)
        places.pop(place, None)
        places[place] = asked_at_s + self._ttl_s
        if len(places) > _MAX_PLACES:
            del places[next(iter(places))]
        if len(self._until) > _MAX_CREDENTIALS:
            self._until.popitem(last=False)

    def note(self, who: bytes, place: Place, status: int) -> None:
        """The upstream answered something else: a refusal ends what was confirmed, at once."""
        if status in KEY_REFUSALS:
            self._until.pop(who, None)
            self._refuse(who, None, place)
        elif status == _NOT_FOUND:
            self.refuse(who, place)

    def refuse(self, who: bytes, place: Place) -> None:
        """The upstream refused this place to a credential, which may be good for others."""
        self._until.get(who, {}).pop(place, None)
        self._refuse(who, place)

    def _refuse(self, who: bytes, *places: Place | None) -> None:
        refused = self._refused.setdefault(who, {})
        self._refused.move_to_end(who)
        for place in places:
            if place is None or not _is_too_long(place):
                refused.pop(place, None)
                refused[place] = self.now()
        while len(refused) > _MAX_PLACES:
            del refused[next(iter(refused))]
        if len(self._refused) > _MAX_CREDENTIALS:
            self._refused.popitem(last=False)


def _is_too_long(place: Place) -> bool:
    return len(place.url) + len(place.model or "") > _MAX_PLACE


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

    def admit(self, given: Headers) -> int:
        """By which edition of the list of clients this is one of them.

        Raises `Unauthorized` if the proxy has a list and this is none of them; or if it has none, and a web page may be
        asking, which any page can make a browser on this machine do.
        """
        self.admit_preflight(given)
        if self._client_keys is not None and not any(map(self._client_keys.knows, _keys_in(given))):
            raise Unauthorized(
                "This proxy does not know the API key. Its operator can make one: embedding-proxy keys add."
            )
        return self.edition

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
