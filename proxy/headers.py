"""Which header fields travel, which identify, and what ``Cache-Control`` asks for (pure)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from operator import itemgetter
from typing import NamedTuple

from multidict import CIMultiDict, CIMultiDictProxy

from proxy.errors import InvalidRequest
from proxy.remembered import remembered

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

# Fields that choose what computes the vector: OpenAI's organisation and project, and Google's, select what a key
# reaches; Portkey routes by dozens of fields, a key among them, but not by these few
# (https://portkey.ai/docs/api-reference/inference-api/headers); NemoRouter compresses what is sent and fills in
# templates; NVIDIA takes images from the assets named there.
_VECTOR_AFFECTING = re.compile(
    r"extra-parameters|openai-(organization|project)|x-goog-user-project|x-(nr|nemo)-(compress|prompt-.*)|nvcf-.*"
    r"|x-portkey-(?!(api-key|trace-id|span-(id|name)|parent-span-id|metadata|debug|cache-.*|request-timeout|retry-.*)$).*"
)
# Azure, Envoy and many a gateway route by a model named in a field, LiteLLM by tags, Helicone by a base URL. There is
# no list of them all, so whatever sounds like routing counts: what is wrongly in a key costs hits, what is wrongly out
# of it gives clients another model's vectors.
_ROUTING = re.compile(
    r"(.*[-_])?(model|deployment|provider|target|backend|endpoint|base(-url)?|route|routing|region|tags)([-_].*)?"
)
# Fields that vouch for the very bytes of the body (RFC 9530, which RFC 9421 signatures cover; AWS; AIGNE's components),
# so that no other body may be sent with them.
_SIGNATURE = frozenset(
    {
        "content-digest",
        "content-md5",
        "digest",
        "repr-digest",
        "x-amz-content-sha256",
        "x-component-sig",
    }
)
# Providers and the gateways before them tell callers apart by many a field (Authorization, api-key, x-goog-api-key,
# x-litellm-api-key, x-auth-token, x-goog-iap-jwt-assertion, …); whatever sounds like one counts as one.
_CREDENTIAL = re.compile(
    r"auth(?!or($|[-_]))|(^|[-_])(api|subscription)?-?key$|token$|secret|credential|password|jwt|assertion|oidc|principal"
    r"|(forwarded|remote)-(user|email|groups|preferred-username)$|(client|ssl|tls)-(client|cert)|tenant|consumer"
    r"|(^|[-_])(vk|pat)$"
)
# AWS signs the body with every request, and says so in the credential itself.
_SIGNED = "AWS4-HMAC-"
# Fields that are for whoever holds the key to say.
_KEY_HOLDERS = re.compile(r"openai-(organization|project)|x-goog-user-project|x-portkey-.*|helicone-.*", re.IGNORECASE)
# These sound like one and are new for every call.
_NO_CREDENTIAL = frozenset(
    {
        "idempotency-key",
        "x-idempotency-key",
        "x-correlation-key",
        "x-csrf-token",
        "x-routing-key",
        "x-xsrf-token",
    }
)
_USUAL_CONNECTION = frozenset({"keep-alive", "Keep-Alive", "close"})  # names no field

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")  # as which such bytes are read

_MAX_NAME = 128  # of a field that is remembered

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
    private = {_Class.CREDENTIAL, _Class.COOKIE}
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if _class_of(name) not in private and not _KEY_HOLDERS.fullmatch(name)
    )


class _Class(Enum):
    CREDENTIAL = 1
    VECTOR_AFFECTING = 2
    COOKIE = 3
    SIGNATURE = 4


@remembered(max_length=_MAX_NAME)
def _class_of(name: str, also: frozenset[str] = frozenset()) -> _Class | None:
    name = name.lower()
    if name == "cookie":
        return _Class.COOKIE
    if name in _SIGNATURE:
        return _Class.SIGNATURE
    if name in also or _VECTOR_AFFECTING.fullmatch(name):
        return _Class.VECTOR_AFFECTING
    if name in HOP_BY_HOP or name in _NO_CREDENTIAL:
        return None
    if _CREDENTIAL.search(name):
        return _Class.CREDENTIAL
    return _Class.VECTOR_AFFECTING if _ROUTING.fullmatch(name) else None


class Identity(NamedTuple):
    """What of the headers an item's key depends on, and whether they allow no body but the one they came with."""

    credentials: list[tuple[str, str]]
    vector_affecting: list[tuple[str, str]]
    is_signed: bool


def identity(headers: Headers, also: frozenset[str] = frozenset()) -> Identity:
    """Read who asks, and what else of the headers matters; ``also`` are the operator's own names, in lower case.

    The fields are lists of (name in lower case, value), sorted by name; repeated fields keep their order. Cookies are a
    credential where there is no other: balancers set new ones all the time.
    """
    connections = headers.getall("Connection", ())
    if connections and (len(connections) > 1 or connections[0] not in _USUAL_CONNECTION):
        headers = end_to_end(headers)  # what the upstream does not see identifies nothing
    of_note = [(kind, name.lower(), value) for name, value in headers.items() if (kind := _class_of(name, also))]
    credentials = _fields(of_note, _Class.CREDENTIAL) or _fields(of_note, _Class.COOKIE)
    is_signed = any(kind is _Class.SIGNATURE or value.startswith(_SIGNED) for kind, _, value in of_note)
    return Identity(credentials, _fields(of_note, _Class.VECTOR_AFFECTING), is_signed)


def _fields(of_note: list[tuple[_Class, str, str]], wanted: _Class) -> list[tuple[str, str]]:
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
