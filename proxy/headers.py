"""Which header fields travel, which identify, and what ``Cache-Control`` asks for (pure)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from multidict import CIMultiDict, CIMultiDictProxy

from proxy.errors import InvalidRequest
from proxy.headerfields import Kind, classifier, is_proof, is_secret

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
_PRIVATE = frozenset({Kind.CREDENTIAL, Kind.ASSERTION, Kind.COOKIE})
_USUAL_CONNECTION = frozenset({"keep-alive", "Keep-Alive", "close"})  # names no field

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")  # as which such bytes are read

_DIRECTIVE = re.compile(r"([a-z-]+)(?:\s*=\s*\"?(\d{1,9})\"?)?")


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
    return classifier()(name) in {Kind.CREDENTIAL, Kind.ASSERTION}


class Identity(NamedTuple):
    """What of the headers an item's key depends on, and whether they allow no body but the one they came with."""

    credentials: list[tuple[str, str]]
    vector_affecting: list[tuple[str, str]]
    is_signed: bool


def identity(
    headers: Headers,
    key_headers: frozenset[str] = frozenset(),
    neutral_headers: frozenset[str] = frozenset(),
    *,
    in_query: Sequence[tuple[str, str]] = (),
) -> Identity:
    """Read who asks, and what else of the headers matters. ``key_headers`` and ``neutral_headers`` are the operator's
    own names, in lower case; ``in_query`` are the credentials in the request's target (`proxy.query`).

    The fields are lists of (name in lower case, value), sorted by name; repeated fields keep their order. Two kinds of
    fields are credentials only where there is no better one, since proxies in front renew them all the time: assertions
    where there is no secret, and cookies where nothing else proves who asks.
    """
    connections = headers.getall("Connection", ())
    if connections and (len(connections) > 1 or connections[0] not in _USUAL_CONNECTION):
        headers = end_to_end(headers)  # what the upstream does not see identifies nothing
    kind_of = classifier(key_headers, neutral_headers)
    of_note = [(kind, name.lower(), value) for name, value in headers.items() if (kind := kind_of(name))]
    credentials = [*_fields(of_note, Kind.CREDENTIAL), *in_query]
    if not any(is_secret(name) for name, _ in credentials):
        credentials += _fields(of_note, Kind.ASSERTION)
        if not any(is_proof(name) for name, _ in credentials):
            credentials += _fields(of_note, Kind.COOKIE)
        credentials.sort(key=itemgetter(0))
    is_signed = any(kind is Kind.SIGNATURE or value.startswith(AWS_SIGNATURE) for kind, _, value in of_note)
    return Identity(credentials, _fields(of_note, Kind.VECTOR_AFFECTING), is_signed)


def _fields(of_note: list[tuple[Kind, str, str]], wanted: Kind) -> list[tuple[str, str]]:
    found = [(name, value) for kind, name, value in of_note if kind is wanted]
    return sorted(found, key=itemgetter(0)) if len(found) > 1 else found


@dataclass(frozen=True, slots=True, kw_only=True)
class Directives:
    """The request directives of RFC 9111 §5.2.1 that mean something to a cache of vectors."""

    no_cache: bool = False  # fetch anew and replace what is stored
    no_store: bool = False  # store nothing of this request's answer
    only_if_cached: bool = False  # 504 rather than ask the upstream
    max_age_s: int | None = None  # entries older than this are fetched anew and replaced


NO_DIRECTIVES = Directives()


def cache_control(headers: Headers) -> Directives:
    """Read ``Cache-Control``; directives it does not know are ignored (RFC 9111 §5.2.3)."""
    values = headers.getall("Cache-Control", None)
    if values is None:
        return NO_DIRECTIVES
    given = dict(_directives(",".join(values).lower().split(",")))
    age = given.get("max-age", "")
    return Directives(
        no_cache="no-cache" in given,
        no_store="no-store" in given,
        only_if_cached="only-if-cached" in given,
        max_age_s=int(age) if age else None,
    )


def _directives(parts: Iterable[str]) -> Iterable[tuple[str, str]]:
    for part in parts:
        if match := _DIRECTIVE.fullmatch(part.strip()):
            yield match[1], match[2] or ""
