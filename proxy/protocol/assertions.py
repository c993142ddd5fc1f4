"""Whom an assertion names, without what changes each time a proxy in front renews it (pure).

An assertion is a certificate or a token by which such a proxy vouches for the client (see
`proxy.protocol.header_fields`).
"""

import json
import re
from typing import Any

import pybase64

from proxy.protocol.header_kinds import is_assertion

Fields = list[tuple[str, str]]  # header names in lower case and values

_CERTIFICATE = "x-forwarded-client-cert"
_RENEWED_KEYS = frozenset({"hash", "cert", "chain"})
_NAMING_KEYS = frozenset({"uri", "dns", "subject"})
# A separator inside double quotes, in which a backslash escapes, does not count.
_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_PAIR = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*")+')
# RFC 7519 §4.1: until when, from when, since when, and a number of its own.
_RENEWED_CLAIMS = frozenset({"exp", "nbf", "iat", "jti"})
# Cloudflare's service tokens have an empty `sub` and a `common_name`.
_NAMING_CLAIMS = ("sub", "email", "common_name")
_JWT_PARTS = 3


def scope_of(credentials: Fields) -> Fields:
    """The credentials, with each assertion replaced by whom it names. One that names nobody stands for itself.

    Anyone can write what stands there, so whoever is in a scope that differs from the credentials must be vouched for
    by the upstream, which sees them whole.
    """
    return [_named(name, value) if is_assertion(name) else (name, value) for name, value in credentials]


def _named(name: str, value: str) -> tuple[str, str]:
    named = _certificate(value) if name == _CERTIFICATE else _claims(value)
    # No field's name has a space, so no client can send what this makes.
    return (name, value) if named is None else (f"{name} names", named)


def _certificate(value: str) -> str | None:
    """``x-forwarded-client-cert`` without digests and certificates, which each renewal and each replica changes.

    https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-client-cert
    """
    elements = _ELEMENT.findall(value)
    if not elements or ",".join(elements) != value:  # an open quote, or nothing between two commas
        return None
    named = [_element(element) for element in elements]
    return None if None in named else ",".join(map(str, named))


def _element(element: str) -> str | None:
    pairs = [(pair.partition("=")[0].strip().lower(), pair) for pair in _PAIR.findall(element)]
    if not any(key in _NAMING_KEYS and pair.partition("=")[2].strip(' "') for key, pair in pairs):
        return None
    return ";".join(pair for key, pair in pairs if key not in _RENEWED_KEYS)


def _claims(token: str) -> str | None:
    """What a JWT says of its subject, signature and time claims aside; None for any other text."""
    parts = token.split(".")
    if len(parts) != _JWT_PARTS:
        return None
    payload = parts[1].rstrip("=")  # load balancers of AWS pad it, others don't
    try:
        # This parser keeps every digit of a large integer.
        payload += "=" * (-len(payload) % 4)
        claims: Any = json.loads(pybase64.b64decode(payload, altchars="-_", validate=True))
    except (ValueError, RecursionError):  # base64's errors are of the first kind, too
        return None
    if type(claims) is not dict or not any(claims.get(name) for name in _NAMING_CLAIMS):
        return None
    return json.dumps({k: v for k, v in claims.items() if k not in _RENEWED_CLAIMS}, sort_keys=True)
