"""Errors that the proxy itself generates, each with what a client or an operator needs to act on it (pure)."""

from collections.abc import Collection, Sequence
from copy import copy
from typing import Any, Self

import orjson


class ProxyError(Exception):
    """A response that the proxy generates, in the format that OpenAI documents for its errors.

    https://platform.openai.com/docs/guides/error-codes: the SDKs choose their exception by ``status`` and retry 408,
    409, 429 and 5xx, so ``status`` alone shows whether a retry can help.
    """

    status = 500
    type = "server_error"
    code = "internal_error"
    retry_after_s: int | None = None  # the response's Retry-After
    # Whether the content of the call may have caused it. If so, a part of a merged call may succeed in its own call.
    may_be_about_call = False

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    def again(self) -> Self:
        """A copy, without a traceback: one exception object must not be raised in several tasks."""
        return copy(self)

    def body(self) -> bytes:
        return orjson.dumps({"error": self._fields()})

    def _fields(self) -> dict[str, Any]:
        return {"message": self.message, "type": self.type, "param": None, "code": self.code}


CLIENT_LEFT = 499  # nginx's status for a client that disconnected before the response


def counted_status(error: Exception) -> int:
    """The status that is counted for a request that failed with ``error``, even if its response had begun."""
    if isinstance(error, ProxyError):
        return error.status
    return CLIENT_LEFT if isinstance(error, ConnectionError) else ProxyError.status


class InvalidRequest(ProxyError):
    """Neither the proxy nor the upstream can interpret the request."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class Unauthorized(ProxyError):
    """The proxy has a list of client keys, and the request has none of them."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class OriginNotAllowed(ProxyError):
    """A preflight from a web page that ``--cors-origins`` does not name."""

    status = 403
    type = "invalid_request_error"
    code = "origin_not_allowed"


class CredentialRefused(ProxyError):
    """The upstream refused the client's credential earlier, and does not respond now to say whether it still does."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class KeyRefused(ProxyError):
    """The upstream refused the key that the proxy holds. Its message may quote the key, so clients don't get it."""

    status = 502
    type = "upstream_error"
    code = "upstream_key_refused"

    def __init__(self, message: str = "The upstream refused the key that this proxy holds for it.") -> None:
        super().__init__(message)


class RequestTimeout(ProxyError):
    """The request did not come in time (RFC 9110 §15.5.9)."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class BodyTooLarge(ProxyError):
    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class BodyTooComplex(ProxyError):
    """Parsing the body would stop everything else for too long."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_complex"


class ResponseTooLarge(ProxyError):
    """The response has a limit, since a short body that repeats a stored item can ask for a response of any size."""

    status = 413
    type = "invalid_request_error"
    code = "response_too_large"


class TargetTooLong(ProxyError):
    """The request target is longer than the proxy parses (RFC 9112 §3)."""

    status = 414
    type = "invalid_request_error"
    code = "target_too_long"


class FieldsTooLarge(ProxyError):
    """A header field is too long, or there are too many (RFC 6585 §5)."""

    status = 431
    type = "invalid_request_error"
    code = "header_fields_too_large"


class NotCached(ProxyError):
    """``Cache-Control: only-if-cached``, and something is missing (RFC 9111 §5.2.1.7 asks for 504).

    If the client may be served cached items, the error says how many ``items`` the request has, and which are
    ``missing``: their positions in ``input``.
    """

    status = 504
    type = "invalid_request_error"
    code = "not_cached"

    def __init__(self, message: str, *, items: int = 0, missing: Sequence[int] | None = None) -> None:
        super().__init__(message)
        self.items = items
        self.missing = missing

    def _fields(self) -> dict[str, Any]:
        found = super()._fields()
        return found if self.missing is None else found | {"items": self.items, "missing": self.missing}


class UpstreamUnreachable(ProxyError):
    """No response: name resolution, connecting or TLS failed, or the connection was lost."""

    status = 502
    type = "upstream_error"
    code = "upstream_unreachable"


class UpstreamBroke(UpstreamUnreachable):
    """The proxy was connected to the upstream, but got no valid response: the call may have crashed the upstream."""

    may_be_about_call = True


class UpstreamDown(ProxyError):
    """The circuit breaker is open after several failures to connect."""

    status = 503
    type = "upstream_error"
    code = "upstream_down"
    retry_after_s = 2


class UpstreamTimeout(ProxyError):
    status = 504
    type = "upstream_error"
    code = "upstream_timeout"


class UpstreamStalled(UpstreamTimeout):
    """The proxy was connected to the upstream and sent the call, but got no response in time."""

    may_be_about_call = True


class Overloaded(ProxyError):
    """Too much is waiting already. The response has ``Retry-After``."""

    status = 503
    code = "overloaded"
    retry_after_s = 1


class RateLimited(ProxyError):
    """The upstream has stated that its rate limit allows no call now, and the client does not wait until it does."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retry_after_s = 1


class BudgetSpent(ProxyError):
    """A client's budget is used up (`[budgets]`). The SDKs raise it like the provider's own exhausted quota."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class BudgetUnknown(ProxyError):
    """The store that counts a budget fails, and the operator chose to refuse calls then."""

    status = 503
    code = "budget_unknown"
    retry_after_s = 1


class Oversized(ProxyError):
    """The request is larger than the upstream's rate limit ever allows at once. It can be cut into smaller ones."""


class Abandoned(ProxyError):
    """No client waits for a request any more, so it was not sent."""


class StoreError(Exception):
    """An operation of the store failed at least in part.

    ``found`` are the values read before that, ``accepted`` the keys whose values were stored. ``reason`` is a metric
    label: timeout, connection, busy, refused or corrupt. With ``is_partial`` the rest of the store works: a part of the
    reply arrived, or other servers of the store are up.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        found: dict[bytes, bytes] | None = None,
        accepted: Collection[bytes] = (),
        is_partial: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_partial = is_partial
        self.found: dict[bytes, bytes] = {} if found is None else found
        self.accepted = frozenset(accepted)


class ConfigError(Exception):
    """A setting that can't be used: the message says what, where and what is accepted, in one line."""
