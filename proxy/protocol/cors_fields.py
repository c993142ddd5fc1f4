"""The CORS fields of responses, and how they are read, removed and added (pure).

https://fetch.spec.whatwg.org/#http-cors-protocol
"""

import re

from multidict import CIMultiDict

from proxy.protocol import headers
from proxy.protocol.headers import Headers

Fields = tuple[tuple[str, str], ...]

ALLOW_ORIGIN = "Access-Control-Allow-Origin"
EXPOSE_HEADERS = "Access-Control-Expose-Headers"
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


def is_page_origin(value: str | None) -> bool:
    """Whether the field Origin is of a browser, and short enough to be remembered."""
    return value is not None and len(value) <= _MAX_ORIGIN_CHARS and _ORIGIN.fullmatch(value) is not None


def fields_of(response: Headers) -> Fields:
    """The CORS fields of an upstream's response, with the usual spelling of names that the proxy looks up."""
    found = [
        (ALLOW_ORIGIN if name.lower() == ALLOW_ORIGIN.lower() else name, value)
        for name, value in headers.end_to_end(response).items()
        if name.lower() in _OF_RESPONSES and value.isascii()
    ]
    if "origin" in headers.tokens(response, "Vary"):
        found.append(("Vary", "Origin"))
    return tuple(found)


def fields_of_preflight(response: Headers) -> Fields:
    """Those CORS fields of a preflight's response that apply to the response to the request itself."""
    return tuple(field for field in fields_of(response) if field[0].lower() in _OF_BOTH)


def strip(response: CIMultiDict[str]) -> None:
    """Remove all CORS fields."""
    for name in [name for name in set(response) if name.lower().startswith(_PREFIX)]:
        response.popall(name, None)


def add(response: CIMultiDict[str], fields: Fields) -> None:
    for name, value in fields:
        if name == "Vary":
            add_vary(response, value)
        else:
            response.add(name, value)


def add_vary(response: CIMultiDict[str], *names: str) -> None:
    """Add the names that Vary lacks (RFC 9110 §12.5.5)."""
    present = headers.tokens(response, "Vary")
    missing = [name for name in names if name.lower() not in present]
    if missing and "*" not in present:
        response["Vary"] = ", ".join([*response.getall("Vary", ()), *missing])
