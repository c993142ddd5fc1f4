"""Requests from web pages on another origin: which CORS fields a response carries (pure).

https://fetch.spec.whatwg.org/#http-cors-protocol. Either the operator lists the origins whose pages may read responses,
or the upstream decides. In the second case, responses from the cache carry the fields that the upstream last sent to a
page of the same origin.
"""

import re
from collections import OrderedDict

from multidict import CIMultiDict

from proxy.protocol import headers
from proxy.protocol.headers import Headers

CorsFields = tuple[tuple[str, str], ...]

EVERY_ORIGIN = "*"
_ALLOW_ORIGIN = "Access-Control-Allow-Origin"
_EXPOSE_HEADERS = "Access-Control-Expose-Headers"
_PREFIX = "access-control-"
# In the response to a request itself, these fields say which pages can read it. The others are for preflights, and may
# repeat what a client wrote into its header.
_OF_RESPONSES = frozenset(
    {"access-control-allow-origin", "access-control-allow-credentials", "access-control-expose-headers"}
)
# In the response to a preflight, these fields apply to the response to the request itself, too.
_OF_BOTH = frozenset({"access-control-allow-origin", "access-control-allow-credentials", "vary"})
# The form in which browsers serialize an origin, or close to it. An origin of another form is not remembered.
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+", re.IGNORECASE)
_MAX_ORIGIN_CHARS = 256
_REQUEST_METHOD, _REQUEST_HEADERS = "Access-Control-Request-Method", "Access-Control-Request-Headers"
# Scripts can read only exposed fields and a few that every response has, such as Content-Type.
_CACHE_FIELDS = "X-Cache, Cache-Status, X-Cache-Saved-Tokens"
# https://platform.openai.com/docs/guides/rate-limits; other providers' rate-limit fields are added if present.
_EXPOSED = (
    f"{_CACHE_FIELDS}, X-Request-Id, Retry-After, Retry-After-Ms,"
    " X-RateLimit-Limit-Requests, X-RateLimit-Remaining-Requests, X-RateLimit-Reset-Requests,"
    " X-RateLimit-Limit-Tokens, X-RateLimit-Remaining-Tokens, X-RateLimit-Reset-Tokens"
)
_EXPOSED_NAMES = frozenset(_EXPOSED.lower().split(", "))
_RATE_LIMIT = re.compile(r"rate-?limit", re.IGNORECASE)
_MAX_AGE_S = "7200"  # the longest time for which Chromium caches a preflight

_TOKENS = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(\s*,\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
_MAX_ORIGINS, _MAX_BYTES = 1024, 4096  # remembered for one upstream, and of one response
_CLIENT_ERROR = 400


def is_preflight(method: str, given: Headers) -> bool:
    """Whether a request is a CORS preflight, which has neither credentials nor a body according to the standard."""
    return (
        method == "OPTIONS"
        and "Origin" in given
        and _REQUEST_METHOD in given
        and given.get("Content-Length", "0") == "0"
        and "Transfer-Encoding" not in given
    )


def origin_of(given: Headers) -> str | None:
    """The origin of the page that sent a request; None without the field Origin. Repeated fields are joined, and then
    match no page's origin."""
    values = given.getall("Origin", None)
    return None if values is None else ", ".join(values)


class UpstreamFields:
    """The CORS fields that one upstream last sent to each origin, for a bounded number of origins.

    The key None stands for requests without the field Origin.
    """

    def __init__(self) -> None:
        self._by_origin: OrderedDict[str | None, CorsFields] = OrderedDict()  # most recently used last
        # What the upstream sends to pages of any origin, as far as its responses show.
        self._for_any: CorsFields | None = None

    def __contains__(self, page: str | None) -> bool:
        return page in self._by_origin

    def __len__(self) -> int:
        return len(self._by_origin)

    def get(self, page: str | None) -> CorsFields | None:
        if page in self._by_origin:
            self._by_origin.move_to_end(page)
            return self._by_origin[page]
        return None if page is None else self._for_any

    def allowed_origin(self, page: str | None) -> str | None:
        """The value of Access-Control-Allow-Origin that the upstream last sent to exactly this origin."""
        return dict(self._by_origin.get(page, ())).get(_ALLOW_ORIGIN)

    def put(self, page: str | None, fields: CorsFields) -> None:
        if sum(len(name) + len(value) for name, value in fields) > _MAX_BYTES:
            fields = ()
        self._by_origin[page] = fields
        self._by_origin.move_to_end(page)
        if len(self._by_origin) > _MAX_ORIGINS:
            self._by_origin.popitem(last=False)
        # A response that allows every origin and does not vary by origin is the same for all of them.
        if (_ALLOW_ORIGIN, EVERY_ORIGIN) in fields and ("Vary", "Origin") not in fields:
            self._for_any = fields
        elif page is not None:
            self._for_any = None


class Cors:
    """The CORS fields of responses on behalf of one upstream.

    With ``allowed`` origins the operator decides: pages of these origins can read every response, and other pages none.
    Without, the upstream decides. ``page`` is always a page's origin, or None for requests without the field Origin.
    """

    def __init__(self, allowed: frozenset[str] = frozenset()) -> None:
        self._allowed = allowed
        self._sent = UpstreamFields()
        self._hit: str | None = None  # cached result of `hit_header_lines`

    @property
    def handles_preflights(self) -> bool:
        return bool(self._allowed)

    def allows(self, page: str | None) -> bool:
        """Whether the operator allows pages of this origin."""
        return EVERY_ORIGIN in self._allowed or page in self._allowed

    def preflight(self, given: Headers) -> CIMultiDict[str]:
        """The fields of a 204 to a preflight from an allowed origin, which allow the method and fields it asks for.

        The names are repeated because ``*`` does not include Authorization. Credentials in the standard's sense
        (cookies, client certificates) are not allowed; API keys are not credentials in that sense.
        """
        response = CIMultiDict({"Access-Control-Max-Age": _MAX_AGE_S})
        for asked, allowed in (
            (_REQUEST_METHOD, "Access-Control-Allow-Methods"),
            (_REQUEST_HEADERS, "Access-Control-Allow-Headers"),
        ):
            value = ", ".join(given.getall(asked, ()))
            if _TOKENS.fullmatch(value):
                response[allowed] = value
        # https://wicg.github.io/private-network-access/, sent by some browsers based on Chromium.
        if given.get("Access-Control-Request-Private-Network") == "true":
            response["Access-Control-Allow-Private-Network"] = "true"
        self._allow(origin_of(given), response)
        _add_vary(response, _REQUEST_METHOD, _REQUEST_HEADERS)
        return response

    def outbound(self, forwarded: CIMultiDict[str]) -> CIMultiDict[str]:
        """A request's fields for the upstream, without an Origin that the operator allows: upstreams that check origins
        themselves, such as Ollama, would refuse the page."""
        if "Origin" not in forwarded or not self.allows(origin_of(forwarded)):
            return forwarded
        forwarded = forwarded.copy()
        forwarded.popall("Origin")
        return forwarded

    def knows(self, page: str | None) -> bool:
        """Whether `finish` can write the fields for ``page`` without another response of the upstream."""
        return bool(self._allowed) or not _is_page_origin(page) or self._sent.get(page) is not None

    def finish(self, page: str | None, response: CIMultiDict[str]) -> None:
        """Put the CORS fields into a response to ``page`` that the proxy generated or assembled.

        An upstream's error without CORS fields gets them like the proxy's own errors: gateways write such errors. An
        upstream's response may have been sent for another request for the same item, from another origin.
        """
        if self._allowed:
            _strip(response)
            if self._allow(page, response):
                limits = {name for name in response if _RATE_LIMIT.search(name) and name.lower() not in _EXPOSED_NAMES}
                response[_EXPOSE_HEADERS] = ", ".join([_EXPOSED, *sorted(limits)])
            return
        allowed_origin = response.get(_ALLOW_ORIGIN)
        sent = self._sent.get(page)
        if (allowed_origin is None and sent) or allowed_origin not in {None, EVERY_ORIGIN, page}:
            _strip(response)
            _add(response, sent or ())
        if _ALLOW_ORIGIN in response and "X-Cache" in response:
            response.add(_EXPOSE_HEADERS, _CACHE_FIELDS)

    def relayed(self, page: str | None, status: int, response: CIMultiDict[str]) -> None:
        """`finish` an upstream's response on the embeddings route that is relayed unchanged, and learn from it."""
        self.learn(page, status, response)
        self.finish(page, response)

    def passed_through(self, page: str | None, _: int, response: CIMultiDict[str]) -> None:
        """`finish` an upstream's response on any other route. If the upstream decides, its own fields stay."""
        if self._allowed:
            self.finish(page, response)

    def hit_header_lines(self) -> str:
        """The fields that `finish` puts into a hit for a request without Origin, as header lines."""
        if self._hit is None:
            response = CIMultiDict({"X-Cache": "HIT"})
            self.finish(None, response)
            del response["X-Cache"]
            self._hit = "".join([f"{name}: {value}\r\n" for name, value in response.items()])
        return self._hit

    def learn(self, page: str | None, status: int, response: Headers) -> None:
        """Remember the CORS fields of the upstream's response to an embeddings request from ``page``.

        An error without CORS fields says nothing about the origin: it may come from a gateway in between.
        """
        if not self._allowed and (status < _CLIENT_ERROR or _ALLOW_ORIGIN in response):
            self._remember(page, _fields_of(response))

    def learn_preflight(self, page: str | None, _: int, response: Headers) -> None:
        """Remember the CORS fields of the upstream's response to a preflight for the embeddings route.

        The response to a request itself has more of them, so it is kept until the allowed origin changes.
        """
        allowed_origin = response.get(_ALLOW_ORIGIN)
        if allowed_origin is not None and allowed_origin != self._sent.allowed_origin(page):
            self._remember(page, _fields_of_preflight(response))

    def _allow(self, page: str | None, response: CIMultiDict[str]) -> bool:
        """Write whether the operator allows ``page``.

        If every origin is allowed, a response has these fields even for a request without Origin; otherwise it has Vary
        even there (https://fetch.spec.whatwg.org/#cors-protocol-and-http-caches).
        """
        if EVERY_ORIGIN in self._allowed:
            response[_ALLOW_ORIGIN] = EVERY_ORIGIN
            return True
        _add_vary(response, "Origin")
        if page is None or page not in self._allowed:
            return False
        response[_ALLOW_ORIGIN] = page
        return True

    def _remember(self, page: str | None, fields: CorsFields) -> None:
        if page is None or _is_page_origin(page):
            self._hit = None
            self._sent.put(page, fields)


def _is_page_origin(value: str | None) -> bool:
    """Whether the field Origin is of a browser, and short enough to be remembered."""
    return value is not None and len(value) <= _MAX_ORIGIN_CHARS and _ORIGIN.fullmatch(value) is not None


def _fields_of(response: Headers) -> CorsFields:
    """The CORS fields of an upstream's response, with the usual spelling of names that the proxy looks up."""
    found = [
        (_ALLOW_ORIGIN if name.lower() == _ALLOW_ORIGIN.lower() else name, value)
        for name, value in headers.end_to_end(response).items()
        if name.lower() in _OF_RESPONSES and value.isascii()
    ]
    if "origin" in headers.tokens(response, "Vary"):
        found.append(("Vary", "Origin"))
    return tuple(found)


def _fields_of_preflight(response: Headers) -> CorsFields:
    """Those CORS fields of a preflight's response that apply to the response to the request itself."""
    return tuple(field for field in _fields_of(response) if field[0].lower() in _OF_BOTH)


def _strip(response: CIMultiDict[str]) -> None:
    """Remove all CORS fields."""
    for name in [name for name in set(response) if name.lower().startswith(_PREFIX)]:
        response.popall(name, None)


def _add(response: CIMultiDict[str], fields: CorsFields) -> None:
    for name, value in fields:
        if name == "Vary":
            _add_vary(response, value)
        else:
            response.add(name, value)


def _add_vary(response: CIMultiDict[str], *names: str) -> None:
    """Add the names that Vary lacks (RFC 9110 §12.5.5)."""
    present = headers.tokens(response, "Vary")
    missing = [name for name in names if name.lower() not in present]
    if missing and "*" not in present:
        response["Vary"] = ", ".join([*response.getall("Vary", ()), *missing])
