"""What one upstream call came to, whom a failure is about, and who may read the upstream's words."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from http import HTTPStatus
from typing import Any

import orjson
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.errors import ProxyError
from proxy.protocol import embedding_response
from proxy.protocol.headers import Headers
from proxy.protocol.vectors import Vector
from proxy.upstream.client import UpstreamResponse

_SITE_OVERLOADED = 529  # Anthropic's and others' "overloaded", outside the IANA registry
_OVERLOADED = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, _SITE_OVERLOADED})
# The upstream judged the credential or the client's pace, before it looked at what was sent.
_ABOUT_CREDENTIAL = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS})
_OWN_BODY_VERDICTS = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
# https://platform.openai.com/docs/guides/error-codes: words of the API itself, which can't quote what was sent.
_KNOWN_CODES = frozenset(
    {
        "authentication_error", "billing_hard_limit_reached", "insufficient_quota", "invalid_api_key",
        "invalid_request_error", "overloaded_error", "permission_error", "rate_limit_error", "rate_limit_exceeded",
        "requests", "server_error", "slow_down", "tokens",
    }
)  # fmt: skip
_PACE_FIELDS = ("retry-after", "retry-after-ms", "x-should-retry")
_PACE_PREFIXES = ("x-ratelimit-", "ratelimit", "anthropic-ratelimit-")


class Blame(Enum):
    """Whom a failed call is about. What is not everybody's may be about one item of a merged call."""

    EVERYBODY = "everybody"  # the credential, its rate limit, the upstream's load, the way to it
    CALL = "call"  # what was sent: an item, their number, their size
    UNKNOWN = "unknown"  # a 5xx, a cut connection, a stall: what was sent, or an outage


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult:
    """A response with status 200 or 201 that checked out. ``vectors[i]`` and ``tokens[i]`` are the entry's i-th item's;
    a vector that can't be stored is None, and then ``unusable`` says what was wrong."""

    vectors: list[Vector | None]
    tokens: list[int]
    model: str  # "" if nobody named it
    usage: dict[str, Any]
    extra_fields: dict[str, Any]  # what else the answer said, as its `id`
    status: int
    headers: CIMultiDictProxy[str]
    is_exact: bool  # the call was for this share alone
    is_own_body: bool  # and its body the client's own, to the byte
    by_origin: bool  # and not by one that stood in for it
    unusable: "InvalidResponse | None" = None


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An error response to a call with ``body``, which was a client's own to the byte, or was not."""

    answer: UpstreamResponse
    body: bytes
    is_own_body: bool


@dataclass(frozen=True, slots=True)
class InvalidResponse:
    """A 2xx response to a call with ``body`` that is not to be stored: an error, or something that did not check out.

    It may be relayed to a client whose own body was ``body``, and to no other. ``embedding`` is the JSON text that
    stands for the embedding where the call was for one item alone.
    """

    answer: UpstreamResponse
    body: bytes
    reason: str
    by_origin: bool
    is_own_body: bool
    embedding: bytes | None = None

    @property
    def confirms(self) -> bool:
        """Whether the upstream took the credential: whatever else is wrong, it is no error."""
        return self.by_origin and self.reason != "error-in-200"


Outcome = EmbedResult | ErrorResponse | InvalidResponse
CallFailure = ErrorResponse | InvalidResponse | ProxyError


def status_of(answer: UpstreamResponse) -> int:
    """The response's status, or that of the error inside a 2xx (OpenRouter)."""
    return embedding_response.error_status(answer.body, answer.status) if is_success(answer.status) else answer.status


def is_success(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def is_outage(answer: UpstreamResponse) -> bool:
    """Whether another upstream that serves the same model may do better: the response is about the upstream."""
    status = status_of(answer)
    return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def blame(failure: CallFailure) -> Blame:
    if isinstance(failure, ProxyError):
        return Blame.UNKNOWN if failure.may_be_about_call else Blame.EVERYBODY
    answer = failure.answer
    status = status_of(answer)
    is_paced = "Retry-After" in answer.headers and not is_success(status)
    if status in _ABOUT_CREDENTIAL or status in _OVERLOADED or is_paced:
        return Blame.EVERYBODY
    return Blame.UNKNOWN if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Blame.CALL


def is_verdict(failure: CallFailure) -> bool:
    """Whether the upstream refused the credential, or the model to it.

    A filter that dislikes one text answers 403, and some gateways 404, so these judge only a client's own body.
    """
    if isinstance(failure, ProxyError):
        return False
    status = status_of(failure.answer)
    return status == HTTPStatus.UNAUTHORIZED or (failure.is_own_body and status in _OWN_BODY_VERDICTS)


def is_about_credential(failure: CallFailure) -> bool:
    """Whether a failure that is everybody's is only of those with the same credential."""
    return not isinstance(failure, ProxyError) and status_of(failure.answer) < HTTPStatus.INTERNAL_SERVER_ERROR


def without_quotes(failure: CallFailure) -> CallFailure:
    """The same failure for clients whose items were not the whole call."""
    if isinstance(failure, ProxyError):
        return failure
    return replace(failure, answer=in_own_words(failure.answer))


def in_own_words(answer: UpstreamResponse) -> UpstreamResponse:
    """An error response for clients whose items were not the whole call: the upstream's words may quote the others'.

    Same status; of the header only what a client needs for its pace; of the body only codes that OpenAI documents.
    """
    status = status_of(answer)
    error = {
        "message": f"The upstream answered {status} to a call that carried items of several requests.",
        "type": "upstream_error",
        "param": None,
        # OpenRouter's SDK reads an error's code as an integer.
        "code": status if is_success(answer.status) else "upstream_error",
    }
    error |= {name: value for name, value in _error_fields(answer).items() if value in _KNOWN_CODES}
    headers = CIMultiDict({"Content-Type": "application/json"})
    headers.extend(pace_fields(answer.headers))
    return UpstreamResponse(
        status=answer.status, reason="", headers=CIMultiDictProxy(headers), body=orjson.dumps({"error": error})
    )


def pace_fields(headers: Headers) -> CIMultiDict[str]:
    """Of a response's header fields those that a client needs for its pace, and that can't quote what was sent."""
    return CIMultiDict((name, value) for name, value in headers.items() if _is_pace(name.lower()))


def _is_pace(name: str) -> bool:
    return name in _PACE_FIELDS or name.startswith(_PACE_PREFIXES)


def _error_fields(answer: UpstreamResponse) -> Mapping[str, str]:
    if len(answer.body) > embedding_response.MAX_ERROR_BYTES:
        return {}
    try:
        body = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        return {}
    error = body.get("error") if type(body) is dict else None
    given = error if type(error) is dict else {}
    return {name: given[name] for name in ("type", "code") if type(given.get(name)) is str}
