"""Which header fields travel (pure)."""

import re

from multidict import CIMultiDict, CIMultiDictProxy

from proxy.errors import InvalidRequest
from proxy.protocol.header_kinds import FieldKind, classifier

Headers = CIMultiDict[str] | CIMultiDictProxy[str]

# RFC 9110 §7.6.1, and Proxy-Connection and Keep-Alive, which RFC 2068 clients still send.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

# The HTTP client writes these itself for the upstream's name, for the body that is really sent, and after
# the server has already answered 100-continue on this hop.
_REWRITTEN = frozenset({"host", "content-length", "expect"})

# AWS signs the body with every request, and says so in the credential itself.
AWS_SIGNATURE = "AWS4-HMAC-"
# Fields that are for whoever holds the key to say.
_KEY_HOLDERS = re.compile(r"openai-(organization|project)|x-goog-user-project|x-portkey-.*|helicone-.*", re.IGNORECASE)
_PRIVATE = frozenset({FieldKind.CREDENTIAL, FieldKind.ASSERTION, FieldKind.COOKIE})

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")  # as which such bytes are read


def end_to_end(headers: Headers) -> CIMultiDict[str]:
    """A copy without the fields that belong to one connection: the fixed ones and those ``Connection`` names; and
    without those that hold what no field may hold (RFC 9110 §5.5), which some upstreams send all the same."""
    named = {token.strip().lower() for value in headers.getall("Connection", ()) for token in value.split(",")}
    dropped = HOP_BY_HOP | named
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in dropped and not _CONTROL.search(value)
    )


def to_upstream(headers: Headers) -> CIMultiDict[str]:
    """The request's fields as the upstream is to see them, ready for the HTTP client to add its own.

    Raises `InvalidRequest` for bytes that it could not send on as they came.
    """
    forwarded = end_to_end(headers)
    for name in _REWRITTEN:
        forwarded.popall(name, None)
    for name, value in forwarded.items():
        if not value.isascii() and _NOT_UTF8.search(value):
            raise InvalidRequest(f"The header field {name} is not UTF-8.")
    return forwarded


def reason_phrase(given: str | None) -> str:
    """An upstream's, as far as it may be sent on."""
    return _CONTROL.sub("", given or "")


def without_credentials(headers: Headers) -> CIMultiDict[str]:
    """A copy without whatever says who the client is or who shall pay, cookies included, or where a gateway shall send
    the key that is put in instead."""
    return CIMultiDict((name, value) for name, value in headers.items() if not is_for_key_holder(name))


def is_for_key_holder(name: str) -> bool:
    """Whether a field of this name is for whoever holds the upstream's key: a credential, a cookie, who pays, or where
    a gateway sends the key."""
    return classifier()(name) in _PRIVATE or _KEY_HOLDERS.fullmatch(name) is not None


def is_credential(name: str) -> bool:
    """Whether a field of this name says who asks."""
    return classifier()(name) in {FieldKind.CREDENTIAL, FieldKind.ASSERTION}
