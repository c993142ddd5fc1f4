"""Origins of web pages as operators write them, in the form that browsers send (pure)."""

import re
from ipaddress import IPv6Address

from proxy.errors import ConfigError
from proxy.protocol.hosts import LOOPBACK_HOSTS
from proxy.upstream import base_urls

# https://fetch.spec.whatwg.org/#origin-header
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9._-]*[a-z0-9])?)(:(?P<port>\d{1,5}))?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_PORT = 65535


def parse_cors_origins(text: str) -> frozenset[str]:
    """``https://app.example.com, http://localhost:3000`` as browsers send them in Origin; or ``*``, every origin.

    Raises `ConfigError`.
    """
    origins = [part.strip() for part in text.split(",")]
    if "*" in origins and len(origins) > 1:
        raise ConfigError("* allows every origin; remove the other origins")
    return frozenset("*" if origin == "*" else _parse_origin(origin) for origin in origins)


def _parse_origin(text: str) -> str:
    """In the form that browsers send: lower case, no default port, the shortest IPv6 address."""
    match = _ORIGIN.fullmatch(text.lower())
    if match is None or int(match["port"] or 0) > _MAX_PORT:
        raise ConfigError(f"{base_urls.redacted(text)!r} is not an origin; {_hint(text)}")
    scheme, host, port = match["scheme"], match["host"], match["port"]
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1])}]"
        except ValueError:
            raise ConfigError(f"{text!r} is not an origin; {_hint('')}") from None
    return f"{scheme}://{host}" + ("" if port is None or int(port) == _DEFAULT_PORTS.get(scheme) else f":{int(port)}")


def _hint(text: str) -> str:
    if text.lower() == "null":
        return "any site can make a page whose origin is null, so only * allows it"
    start = re.match(_ORIGIN, text.lower())
    if start is not None and text[start.end() :].startswith(("/", "?", "#")):
        return f"an origin has no path; use {text[: start.end()]}"
    if bare := _ORIGIN.fullmatch(f"https://{text.lower()}"):
        return f"did you mean {'http' if bare['host'].strip('[]') in LOOPBACK_HOSTS else 'https'}://{text}?"
    return "accepted: scheme://host or scheme://host:port, as https://app.example.com, separated by commas; or *"
