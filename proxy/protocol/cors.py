"""Requests from web pages on another origin: which CORS fields a response carries (pure).

The rules are those of https://fetch.spec.whatwg.org/#http-cors-protocol. Either the operator names the origins whose
pages may read responses, or the upstream decides, and responses from the cache carry what the upstream last sent to a
page of the same origin.
"""

import re
from collections import OrderedDict

from multidict import CIMultiDict

from proxy.protocol import headers
from proxy.protocol.headers import Headers

Fields = tuple[tuple[str, str], ...]

EVERY_ORIGIN = "*"
ALLOW_ORIGIN = "Access-Control-Allow-Origin"
_EXPOSE = "Access-Control-Expose-Headers"
_REQUEST_METHOD, _REQUEST_HEADERS = "Access-Control-Request-Method", "Access-Control-Request-Headers"
_PREFIX = "access-control-"
# Of the response to a request itself, these say who can read it. The others are for preflights, and may repeat what a
# client wrote into its header.
_OF_RESPONSES = frozenset(
    {"access-control-allow-origin", "access-control-allow-credentials", "access-control-expose-headers"}
)
# Of the response to a preflight, these hold for the response to the request itself, too.
_OF_BOTH = frozenset({"access-control-allow-origin", "access-control-allow-credentials", "vary"})

# Scripts can read no other fields than these and a few that every response has, as Content-Type.
_CACHE_FIELDS = "X-Cache, Cache-Status, X-Cache-Saved-Tokens"
# https://platform.openai.com/docs/guides/rate-limits; fields by other names are added where a response has them.
_EXPOSED = (
    f"{_CACHE_FIELDS}, X-Request-Id, Retry-After, Retry-After-Ms,"
    " X-RateLimit-Limit-Requests, X-RateLimit-Remaining-Requests, X-RateLimit-Reset-Requests,"
    " X-RateLimit-Limit-Tokens, X-RateLimit-Remaining-Tokens, X-RateLimit-Reset-Tokens"
)
_EXPOSED_NAMES = frozenset(_EXPOSED.lower().split(", "))
_RATE_LIMIT = re.compile(r"rate-?limit", re.IGNORECASE)
_MAX_AGE_S = "7200"  # Chromium keeps no preflight longer

_TOKENS = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(\s*,\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
# As browsers serialize an origin, or nearly: what has another form is not remembered.
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+", re.IGNORECASE)
_MAX_ORIGIN_CHARS = 256
_MAX_ORIGINS, _MAX_BYTES = 1024, 4096  # remembered for one upstream, and of one response
_CLIENT_ERROR = 400


def is_preflight(method: str, given: Headers) -> bool:
    """Whether a request is a CORS preflight, which by the standard has neither credentials nor a body."""
    return (
        method == "OPTIONS"
        and "Origin" in given
        and _REQUEST_METHOD in given
        and given.get("Content-Length", "0") == "0"
        and "Transfer-Encoding" not in given
    )


def origin_of(given: Headers) -> str | None:
    """The origin of the page that sent a request; None if it has no such field. Several are the origin of no page."""
    values = given.getall("Origin", None)
    return None if values is None else ", ".join(values)


class Cors:
    """The CORS fields of responses on behalf of one upstream.

    With ``allowed`` origins the operator decides: pages of these may read every response, others none, whatever the
    upstream says of it. Without, the upstream decides. A page's origin is None for requests without the field Origin.
    """

    def __init__(self, allowed: frozenset[str] = frozenset()) -> None:
        self._allowed = allowed
        self._sent: OrderedDict[str | None, Fields] = OrderedDict()  # by the upstream, most recently used last
        # What the upstream sends to pages of whatever origin, as far as its responses tell.
        self._sent_to_all: Fields | None = None
        self._hit: str | None = None  # `hit_header_lines`, until something changes it

    @property
    def handles_preflights(self) -> bool:
        return bool(self._allowed)

    def allows(self, page: str | None) -> bool:
        """Whether the operator allows pages of this origin."""
        return EVERY_ORIGIN in self._allowed or page in self._allowed

    def preflight(self, given: Headers) -> CIMultiDict[str]:
        """The fields of a 204 to a preflight from an allowed origin: whatever method and fields it asks for.

        The names are repeated since ``*`` does not cover Authorization. Credentials in the sense of the standard
        (cookies, client certificates) are not allowed: API keys are none.
        """
        response = CIMultiDict({"Access-Control-Max-Age": _MAX_AGE_S})
        for asked, allowed in (
            (_REQUEST_METHOD, "Access-Control-Allow-Methods"),
            (_REQUEST_HEADERS, "Access-Control-Allow-Headers"),
        ):
            value = ", ".join(given.getall(asked, ()))
            if _TOKENS.fullmatch(value):
                response[allowed] = value
        # https://wicg.github.io/private-network-access/, of some browsers based on Chromium.
        if given.get("Access-Control-Request-Private-Network") == "true":
            response["Access-Control-Allow-Private-Network"] = "true"
        self._allow(origin_of(given), response)
        _add_vary(response, _REQUEST_METHOD, _REQUEST_HEADERS)
        return response

    def outbound(self, forwarded: CIMultiDict[str]) -> CIMultiDict[str]:
        """A request's fields for the upstream. It is not told of an origin that the operator allows: upstreams that
        check origins themselves, as Ollama does, would refuse the page."""
        if "Origin" not in forwarded or not self.allows(origin_of(forwarded)):
            return forwarded
        forwarded = forwarded.copy()
        forwarded.popall("Origin")
        return forwarded

    def knows(self, page: str | None) -> bool:
        """Whether `finish` has the upstream's word for a response to ``page``, or nothing to ask for."""
        return bool(self._allowed) or not _is_page(page) or self._sent_to(page) is not None

    def finish(self, page: str | None, response: CIMultiDict[str]) -> None:
        """Put the CORS fields into a response to ``page`` that the proxy made, or made from an upstream's.

        An upstream's error without them gets them like the proxy's own: gateways write errors that lack them. An
        upstream's response may be that to another request which asked for the same item, from another origin.
        """
        if self._allowed:
            _strip(response)
            if self._allow(page, response):
                limits = {name for name in response if _RATE_LIMIT.search(name) and name.lower() not in _EXPOSED_NAMES}
                response[_EXPOSE] = ", ".join([_EXPOSED, *sorted(limits)])
            return
        told = response.get(ALLOW_ORIGIN)
        sent = self._sent_to(page)
        if (told is None and sent) or told not in {None, EVERY_ORIGIN, page}:
            _strip(response)
            _add(response, sent or ())
        if ALLOW_ORIGIN in response and "X-Cache" in response:
            response.add(_EXPOSE, _CACHE_FIELDS)

    def relayed(self, page: str | None, status: int, response: CIMultiDict[str]) -> None:
        """`finish` an upstream's response on the embeddings route that is relayed as it comes, and learn from it."""
        self.learn(page, status, response)
        self.finish(page, response)

    def passed_through(self, page: str | None, _: int, response: CIMultiDict[str]) -> None:
        """`finish` an upstream's response on any other route, where the upstream's own fields stay if it decides."""
        if self._allowed:
            self.finish(page, response)

    def hit_header_lines(self) -> str:
        """What `finish` puts into a hit for a request without Origin, as lines of a response's head."""
        if self._hit is None:
            response = CIMultiDict({"X-Cache": "HIT"})
            self.finish(None, response)
            del response["X-Cache"]
            self._hit = "".join([f"{name}: {value}\r\n" for name, value in response.items()])
        return self._hit

    def learn(self, page: str | None, status: int, answered: Headers) -> None:
        """The upstream answered an embeddings request from ``page``. An error without CORS fields says nothing of the
        origin: it may come from a gateway in between."""
        if not self._allowed and (status < _CLIENT_ERROR or ALLOW_ORIGIN in answered):
            self._remember(page, _fields_of(answered))

    def learn_preflight(self, page: str | None, _: int, answered: Headers) -> None:
        """The upstream answered a preflight for the embeddings route. What it answered to a request itself says more,
        unless it has changed its mind since."""
        told = answered.get(ALLOW_ORIGIN)
        if told is not None and told != dict(self._sent.get(page, ())).get(ALLOW_ORIGIN):
            self._remember(page, tuple(field for field in _fields_of(answered) if field[0].lower() in _OF_BOTH))

    def _allow(self, page: str | None, response: CIMultiDict[str]) -> bool:
        """Say whether the operator allows ``page``.

        A response that is the same for every origin has its fields even where the request has no Origin; any other
        has Vary even there (https://fetch.spec.whatwg.org/#cors-protocol-and-http-caches).
        """
        if EVERY_ORIGIN in self._allowed:
            response[ALLOW_ORIGIN] = EVERY_ORIGIN
            return True
        _add_vary(response, "Origin")
        if page is None or page not in self._allowed:
            return False
        response[ALLOW_ORIGIN] = page
        return True

    def _sent_to(self, page: str | None) -> Fields | None:
        if page in self._sent:
            self._sent.move_to_end(page)
            return self._sent[page]
        return None if page is None else self._sent_to_all

    def _remember(self, page: str | None, fields: Fields) -> None:
        if page is not None and not _is_page(page):
            return
        if sum(len(name) + len(value) for name, value in fields) > _MAX_BYTES:
            fields = ()
        self._hit = None
        self._sent[page] = fields
        self._sent.move_to_end(page)
        if len(self._sent) > _MAX_ORIGINS:
            self._sent.popitem(last=False)
        # A response that may be shared with all and does not vary by origin would have been the same for others.
        if (ALLOW_ORIGIN, EVERY_ORIGIN) in fields and ("Vary", "Origin") not in fields:
            self._sent_to_all = fields
        elif page is not None:
            self._sent_to_all = None


def _is_page(page: str | None) -> bool:
    return page is not None and len(page) <= _MAX_ORIGIN_CHARS and _ORIGIN.fullmatch(page) is not None


def _fields_of(answered: Headers) -> Fields:
    """The CORS fields of an upstream's response, by their usual names where the proxy looks for one."""
    found = [
        (ALLOW_ORIGIN if name.lower() == ALLOW_ORIGIN.lower() else name, value)
        for name, value in headers.end_to_end(answered).items()
        if name.lower() in _OF_RESPONSES and value.isascii()
    ]
    if "origin" in _tokens(answered, "Vary"):
        found.append(("Vary", "Origin"))
    return tuple(found)


def _strip(response: CIMultiDict[str]) -> None:
    for name in [name for name in set(response) if name.lower().startswith(_PREFIX)]:
        response.popall(name, None)


def _add(response: CIMultiDict[str], fields: Fields) -> None:
    for name, value in fields:
        if name == "Vary":
            _add_vary(response, value)
        else:
            response.add(name, value)


def _add_vary(response: CIMultiDict[str], *names: str) -> None:
    there = _tokens(response, "Vary")
    missing = [name for name in names if name.lower() not in there]
    if missing and "*" not in there:
        response["Vary"] = ", ".join([*response.getall("Vary", ()), *missing])


def _tokens(given: Headers, name: str) -> set[str]:
    return {token.strip().lower() for value in given.getall(name, ()) for token in value.split(",")}
