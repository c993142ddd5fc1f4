"""The proxy's own errors as responses, parsed and as bytes."""

import orjson

from proxy.errors import BodyTooLarge, BudgetSpent, Overloaded, ProxyError, RateLimited, RequestTimeout
from proxy.http.error_responses import error_bytes, error_response


def waiting(error: ProxyError, seconds: int) -> ProxyError:
    error.retry_after_s = seconds
    return error


def test_the_body_is_the_errors_own() -> None:
    error = BodyTooLarge("too large")
    response = error_response(error)
    assert (response.status, response.content_type, response.body) == (413, "application/json", error.body())
    assert "Retry-After" not in response.headers
    assert response.keep_alive is None  # as the request says


def test_how_long_to_wait_is_said_if_it_is_known() -> None:
    assert error_response(waiting(Overloaded("busy"), 3)).headers["Retry-After"] == "3"
    assert error_response(waiting(Overloaded("busy"), 0)).headers["Retry-After"] == "0"


def test_only_a_spent_budget_says_what_is_left_of_it() -> None:
    spent = BudgetSpent("spent", retry_after_s=7)
    assert error_response(spent).headers["X-Budget-Remaining-Tokens"] == "0"
    assert "X-Budget-Remaining-Tokens" not in error_response(RateLimited("slow", retry_after_s=7)).headers


def test_after_a_body_that_did_not_arrive_the_connection_closes() -> None:
    assert error_response(RequestTimeout("late")).keep_alive is False


def test_as_bytes_it_is_the_last_response_of_a_connection() -> None:
    for error, retry in ((RequestTimeout("late"), []), (waiting(Overloaded("busy"), 3), ["Retry-After: 3"])):
        head, _, body = error_bytes(error).partition(b"\r\n\r\n")
        status, *fields = head.decode().split("\r\n")
        assert status == f"HTTP/1.1 {error.status} {error.code}"
        assert fields == ["Content-Type: application/json", *retry, f"Content-Length: {len(body)}", "Connection: close"]
        assert orjson.loads(body)["error"]["code"] == error.code
