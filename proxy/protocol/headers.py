"""Which header fields are forwarded (pure)."""

import re

from multidict import CIMultiDict, CIMultiDictProxy

from proxy.errors import InvalidRequest
from proxy.protocol.header_kinds import FieldKind, classifier

Headers = CIMultiDict[str] | CIMultiDictProxy[str]

# RFC 9110 §7.6.1, plus Proxy-Connection and Keep-Alive, which some clients still send (RFC 2068).
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

# Request fields that are not forwarded, besides hop-by-hop fields. The HTTP client writes Host and Content-Length
# itself; the server has already answered Expect with 100 Continue on this hop (RFC 9110 §10.1.1).
_NOT_FORWARDED = frozenset({"host", "content-length", "expect"})

# AWS Signature Version 4 signs the body of every request; the credential begins with this.
AWS_SIGNATURE = "AWS4-HMAC-"
# Fields that only the holder of the upstream's key may set: the account that pays, and a gateway's routing.
_KEY_HOLDERS = re.compile(r"openai-(organization|project)|x-goog-user-project|x-portkey-.*|helicone-.*", re.IGNORECASE)
_PRIVATE = frozenset({FieldKind.CREDENTIAL, FieldKind.ASSERTION, FieldKind.COOKIE})

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")  # Python decodes such bytes to lone surrogates


def tokens(headers: Headers, name: str) -> set[str]:
    """The members of a field that is a list of tokens (RFC 9110 §5.6.1), in lower case."""
    return {token.strip().lower() for value in headers.getall(name, ()) for token in value.split(",")}


def end_to_end(headers: Headers) -> CIMultiDict[str]:
    """A copy without hop-by-hop fields: the fixed ones and those that ``Connection`` lists (RFC 9110 §7.6.1).

    Fields with control characters are dropped too. RFC 9110 §5.5 forbids them, but some upstreams send them.
    """
    dropped = HOP_BY_HOP | tokens(headers, "Connection")
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in dropped and not _CONTROL.search(value)
    )


def is_forwarded(name: str, headers: Headers) -> bool:
    """Whether the upstream sees a field of this name, in lower case, of a request with these ``headers``."""
    return name not in HOP_BY_HOP | _NOT_FORWARDED | tokens(headers, "Connection")


def to_upstream(headers: Headers) -> CIMultiDict[str]:
    """The request's fields for the upstream. The HTTP client adds its own.

    Raises `InvalidRequest` for bytes that can't be forwarded unchanged.
    """
    forwarded = end_to_end(headers)
    for name in _NOT_FORWARDED:
        forwarded.popall(name, None)
    for name, value in forwarded.items():
        if not value.isascii() and _NOT_UTF8.search(value):
            raise InvalidRequest(f"The header field {name} is not UTF-8.")
    return forwarded


def reason_phrase(given: str | None) -> str:
    """An upstream's reason phrase without control characters."""
    return _CONTROL.sub("", given or "")


def without_credentials(headers: Headers) -> CIMultiDict[str]:
    """A copy without the fields that are reserved for the holder of the upstream's key (`is_for_key_holder`), to which
    the proxy's own key is added."""
    return CIMultiDict((name, value) for name, value in headers.items() if not is_for_key_holder(name))


def is_for_key_holder(name: str) -> bool:
    """Whether a field of this name is reserved for the holder of the upstream's key: a credential, a cookie, the
    account that pays, or where a gateway sends the key."""
    return classifier()(name) in _PRIVATE or _KEY_HOLDERS.fullmatch(name) is not None


def is_credential(name: str) -> bool:
    """Whether a field of this name identifies the client."""
    return classifier()(name) in {FieldKind.CREDENTIAL, FieldKind.ASSERTION}
