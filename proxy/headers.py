"""Which header fields travel, which identify, and what ``Cache-Control`` asks for (pure)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from multidict import CIMultiDict, CIMultiDictProxy

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

# Every field by which one of the providers, or a gateway before it, tells callers apart.
CREDENTIALS = (
    "api-key",
    "authorization",
    "cookie",
    "ocp-apim-subscription-key",
    "x-api-key",
    "x-goog-api-key",
)

# Fields that choose what computes the vector: OpenAI's organisation and project select the deployment a key
# reaches; Azure routes by the two azureml fields.
VECTOR_AFFECTING = (
    "azureml-model-deployment",
    "extra-parameters",
    "openai-organization",
    "openai-project",
)

_DIRECTIVE = re.compile(r"([a-z-]+)(?:\s*=\s*\"?(\d+)\"?)?")


def end_to_end(headers: Headers) -> CIMultiDict[str]:
    """A copy without the fields that belong to one connection: the fixed ones and those ``Connection`` names."""
    named = {token.strip().lower() for value in headers.getall("Connection", ()) for token in value.split(",")}
    dropped = HOP_BY_HOP | named
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)


def to_upstream(headers: Headers) -> CIMultiDict[str]:
    """The request's fields as the upstream is to see them, ready for the HTTP client to add its own."""
    forwarded = end_to_end(headers)
    for name in _REWRITTEN:
        forwarded.popall(name, None)
    return forwarded


def identity(headers: Headers) -> tuple[list[str], list[str]]:
    """What of the headers an item's key depends on: ``(credentials, vector-affecting fields)``.

    Each list is flat, ``[name, value, name, value, …]``, in an order of its own; repeated fields keep theirs.
    """
    return _flat(headers, CREDENTIALS), _flat(headers, VECTOR_AFFECTING)


def _flat(headers: Headers, names: tuple[str, ...]) -> list[str]:
    return [part for name in names for value in headers.getall(name, ()) for part in (name, value)]


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
