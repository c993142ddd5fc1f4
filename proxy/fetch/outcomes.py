"""The outcomes of an upstream call: what a failure is about, and which clients may read the upstream's response."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from http import HTTPStatus
from typing import Any

import orjson
from msgspec import Struct
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.cache.entry import Entry
from proxy.errors import ProxyError
from proxy.protocol import error_body, headers, rate_limits
from proxy.protocol.headers import Headers
from proxy.protocol.vectors import Vector
from proxy.upstream.client import UpstreamResponse

_SITE_OVERLOADED = 529  # Anthropic's and others' "overloaded", outside the IANA registry
_OVERLOADED = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, _SITE_OVERLOADED})
# The upstream rejected the credential or the request rate, before it looked at what was sent.
_ABOUT_CREDENTIAL = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS})
_OWN_BODY_VERDICTS = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
# https://platform.openai.com/docs/guides/error-codes: codes of the API itself, which can't quote what was sent.
_KNOWN_CODES = frozenset(
    {
        "authentication_error", "billing_hard_limit_reached", "insufficient_quota", "invalid_api_key",
        "invalid_request_error", "overloaded_error", "permission_error", "rate_limit_error", "rate_limit_exceeded",
        "requests", "server_error", "slow_down", "tokens",
    }
)  # fmt: skip
# A paid quota that is used up does not come back while a client waits.
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "budget_exceeded"})
# These fields describe the body, which is not the one that clients get.
_BODY_FIELDS = (
    "Content-Length", "Content-Encoding", "Content-Type", "Content-Digest", "Content-MD5", "Digest", "ETag",
    "Repr-Digest", "Signature", "Signature-Input",
)  # fmt: skip
_PACE_FIELDS = ("retry-after", "retry-after-ms", "x-should-retry")
_PACE_PREFIXES = ("x-ratelimit-", "ratelimit", "anthropic-ratelimit-")


class Blame(Enum):
    """The cause of a failed call. Unless it is `EVERYBODY`, one item of a merged call may have caused it."""

    EVERYBODY = "everybody"  # the credential, its rate limit, the upstream's load, the network
    CALL = "call"  # what was sent: an item, the number of items, their size
    UNKNOWN = "unknown"  # a 5xx, a broken connection, a stall: either what was sent or an outage


class EmbedResult(Struct, frozen=True, kw_only=True):
    """One request's part of a valid response with status 200 or 201.

    ``vectors[i]`` and ``tokens[i]`` belong to the request's i-th item. A vector that can't be stored is None, and then
    ``unusable`` says why.
    """

    vectors: Sequence[Vector | None]
    tokens: list[int]
    model: str  # "" if it is unknown
    usage: dict[str, Any]
    extra_fields: dict[str, Any]  # further fields of the response, such as its `id`
    status: int
    headers: CIMultiDictProxy[str]  # the upstream's
    relayed: CIMultiDict[str]  # of these, `relayed_fields`; shared, not to be changed
    is_unmerged: bool  # the call was for this request alone
    is_own_body: bool  # and its body the client's own
    by_origin: bool  # not by a fallback
    unusable: "InvalidResponse | None" = None
    texts: Sequence[memoryview] = ()  # `EmbeddingResponse.texts`
    entries: Mapping[bytes, Entry] = {}  # of the vectors, once they are in the cache


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An error response to a call with ``body``. ``retry_after_s`` is the wait that its own body stated, if that is not
    part of ``response`` any more."""

    response: UpstreamResponse
    body: bytes
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class InvalidResponse:
    """A 2xx response to a call with ``body`` that must not be stored: it is an error, or failed validation.

    It may be relayed to a client whose own body was ``body``, and to no other. ``embedding`` is the JSON text in place
    of the embedding, where the call was for one item alone.
    """

    response: UpstreamResponse
    body: bytes
    reason: str
    by_origin: bool
    embedding: bytes | None = None

    @property
    def confirms(self) -> bool:
        """Whether the upstream accepted the credential: whatever else is wrong, it is no error."""
        return self.by_origin and self.reason != "error-in-200"


Outcome = EmbedResult | ErrorResponse | InvalidResponse
CallFailure = ErrorResponse | InvalidResponse | ProxyError


def status_of(response: UpstreamResponse) -> int:
    """The response's status, or that of the error inside a 2xx (OpenRouter)."""
    if is_success(response.status):
        return error_body.error_status(response.error_text, response.status)
    return response.status


def is_success(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def is_outage(response: UpstreamResponse) -> bool:
    """Whether the response is about the upstream, so that a fallback may do better."""
    status = status_of(response)
    return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def blame(failure: CallFailure) -> Blame:
    if isinstance(failure, ProxyError):
        return Blame.UNKNOWN if failure.may_be_about_call else Blame.EVERYBODY
    status = status_of(failure.response)
    is_paced = "Retry-After" in failure.response.headers and not is_success(status)
    if status in _ABOUT_CREDENTIAL or status in _OVERLOADED or is_paced:
        return Blame.EVERYBODY
    return Blame.UNKNOWN if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Blame.CALL


def rate_limit_refusal(outcome: Outcome | ProxyError) -> ErrorResponse | None:
    """The error, if the upstream refused the call for its limits or its load, and so computed nothing."""
    if isinstance(outcome, EmbedResult | ProxyError):
        return None
    response, status = outcome.response, status_of(outcome.response)
    is_paced = "Retry-After" in response.headers or "retry-after-ms" in response.headers
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        is_paid_up = _NO_CREDIT.isdisjoint(_error_fields(response).values())
        is_refusal = is_paid_up and response.headers.get("x-should-retry") != "false"
    else:
        is_refusal = status in _OVERLOADED and is_paced
    if not is_refusal:
        return None
    return outcome if isinstance(outcome, ErrorResponse) else ErrorResponse(response, outcome.body)


def is_verdict(failure: CallFailure, *, is_own_body: bool) -> bool:
    """Whether the upstream refused the credential, or refused it the model.

    A content filter answers 403 to a text, and some gateways 404, so these statuses count only if the body that was
    sent was the client's own.
    """
    if isinstance(failure, ProxyError):
        return False
    status = status_of(failure.response)
    return status == HTTPStatus.UNAUTHORIZED or (is_own_body and status in _OWN_BODY_VERDICTS)


def is_about_credential(failure: CallFailure) -> bool:
    """Whether a failure with `Blame.EVERYBODY` concerns only requests with the same credential."""
    return not isinstance(failure, ProxyError) and status_of(failure.response) < HTTPStatus.INTERNAL_SERVER_ERROR


def without_quotes(failure: CallFailure) -> CallFailure:
    """The same failure for clients whose items were not the whole call."""
    if isinstance(failure, ProxyError):
        return failure
    own = in_own_words(failure.response)
    if isinstance(failure, InvalidResponse):
        return replace(failure, response=own)
    return ErrorResponse(own, failure.body, rate_limits.retry_delay_s(error_body.parsed(failure.response.error_text)))


def without_request(refusal: ErrorResponse) -> ErrorResponse:
    """The same refusal for any client, without the body that was sent."""
    return ErrorResponse(in_own_words(refusal.response), b"")


def in_own_words(response: UpstreamResponse) -> UpstreamResponse:
    """An error response for clients whose items were not the whole call: the upstream's may quote other clients' items.

    It has the same status, of the header fields those about rate limits, and of the body the codes that OpenAI
    documents.
    """
    status = status_of(response)
    error = {
        "message": f"The upstream responded with status {status} to a call that had items of several requests.",
        "type": "upstream_error",
        "param": None,
        # OpenRouter's SDK reads an error's code as an integer.
        "code": status if is_success(response.status) else "upstream_error",
    }
    error |= {name: value for name, value in _error_fields(response).items() if value in _KNOWN_CODES}
    fields = CIMultiDict({"Content-Type": "application/json"})
    fields.extend(_pace_fields(response.headers))
    return UpstreamResponse(
        status=response.status, reason="", headers=CIMultiDictProxy(fields), body=orjson.dumps({"error": error})
    )


def relayed_fields(given: Headers, *, is_unmerged: bool) -> CIMultiDict[str]:
    """The header fields of a response for a client whose body is made from it. Those of a merged call may quote what
    another client sent, but for the fields about rate limits."""
    if not is_unmerged:
        return _pace_fields(given)
    fields = headers.end_to_end(given)
    for name in _BODY_FIELDS:
        fields.popall(name, None)
    return fields


def _pace_fields(given: Headers) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in given.items() if _is_pace(name.lower()))


def _is_pace(name: str) -> bool:
    return name in _PACE_FIELDS or name.startswith(_PACE_PREFIXES)


def _error_fields(response: UpstreamResponse) -> Mapping[str, str]:
    body = error_body.parsed(response.error_text)
    error = body.get("error") if type(body) is dict else None
    given = error if type(error) is dict else {}
    return {name: given[name] for name in ("type", "code") if type(given.get(name)) is str}


def usage_of(deliveries: Sequence[EmbedResult]) -> dict[str, Any]:
    """The usage of all calls made for one request; of a single call with all fields of the upstream's."""
    if len(deliveries) == 1:
        return deliveries[0].usage
    return {name: sum(delivery.usage[name] for delivery in deliveries) for name in ("prompt_tokens", "total_tokens")}
