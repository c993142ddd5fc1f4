"""The identity in an assertion, without the parts that change when a proxy in front renews it (pure).

An assertion is a certificate or a token by which such a proxy identifies the client (`proxy.protocol.header_fields`).
"""

import json
import re
from typing import Any

import pybase64

from proxy.protocol.header_kinds import Fields, is_assertion

_CERTIFICATE = "x-forwarded-client-cert"
_RENEWED_KEYS = frozenset({"hash", "cert", "chain"})
_NAMING_KEYS = frozenset({"uri", "dns", "subject"})
# A separator inside double quotes does not count. Inside them, a backslash escapes the next character.
_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_PAIR = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*")+')
# RFC 7519 §4.1: expiration, not before, issued at, and an ID of the token.
_RENEWED_CLAIMS = frozenset({"exp", "nbf", "iat", "jti"})
# Cloudflare's service tokens have an empty `sub` and a `common_name`.
_NAMING_CLAIMS = ("sub", "email", "common_name")
_JWT_PARTS = 3


def scope_of(credentials: Fields) -> Fields:
    """The credentials, with each assertion replaced by the identity it names. One that names no identity is unchanged.

    Any client can write such an identity. Therefore, if the scope differs from the credentials, the upstream, which
    sees the whole assertion, must have accepted the credentials before the scope's entries are served.
    """
    return [_identity_in(name, value) if is_assertion(name) else (name, value) for name, value in credentials]


def _identity_in(name: str, value: str) -> tuple[str, str]:
    identity = _certificate(value) if name == _CERTIFICATE else _claims(value)
    # Field names have no spaces (RFC 9110 §5.1), so a client can't send a field that equals this result.
    return (name, value) if identity is None else (f"{name} names", identity)


def _certificate(value: str) -> str | None:
    """``x-forwarded-client-cert`` without digests and certificates, which differ after a renewal and between replicas.

    https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-client-cert
    """
    elements = _ELEMENT.findall(value)
    if not elements or ",".join(elements) != value:  # an unclosed quote or an empty element
        return None
    stable = [_element(element) for element in elements]
    return None if None in stable else ",".join(map(str, stable))


def _element(element: str) -> str | None:
    pairs = [(pair.partition("=")[0].strip().lower(), pair) for pair in _PAIR.findall(element)]
    if not any(key in _NAMING_KEYS and pair.partition("=")[2].strip(' "') for key, pair in pairs):
        return None
    return ";".join(pair for key, pair in pairs if key not in _RENEWED_KEYS)


def _claims(token: str) -> str | None:
    """The claims of a JWT without signature and time claims; None for a text that is not a JWT or names no subject."""
    parts = token.split(".")
    if len(parts) != _JWT_PARTS:
        return None
    payload = parts[1].rstrip("=")  # AWS load balancers pad it, others do not
    try:
        # This parser keeps every digit of a large integer.
        payload += "=" * (-len(payload) % 4)
        claims: Any = json.loads(pybase64.b64decode(payload, altchars="-_", validate=True))
    except (ValueError, RecursionError):  # errors of base64 are ValueErrors too
        return None
    if type(claims) is not dict or not any(claims.get(name) for name in _NAMING_CLAIMS):
        return None
    return json.dumps({k: v for k, v in claims.items() if k not in _RENEWED_CLAIMS}, sort_keys=True)
