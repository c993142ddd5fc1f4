"""What a failed call is about, and what of the upstream's response other clients may read."""

import gzip
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from proxy.errors import Overloaded, UpstreamDown, UpstreamStalled
from proxy.fetch.outcomes import (
    Blame,
    ErrorResponse,
    InvalidResponse,
    blame,
    in_own_words,
    is_about_credential,
    is_outage,
    is_verdict,
    rate_limit_refusal,
    relayed_fields,
    status_of,
    usage_of,
    without_quotes,
    without_request,
)
from proxy.fetch.request import FetchRequest, Policy
from tests.support.client_requests import client_request_for
from tests.support.fake_batcher import embedded
from tests.support.fake_client import response

BODY = b'{"input": "a text"}'
IN_200 = {"error": {"message": "no", "code": 429}}


def failed(status: int, body: Any = None, **headers: str) -> ErrorResponse:
    return ErrorResponse(response(status, body or {"error": {"message": "a text"}}, **headers), BODY)


def invalid(body: Any, *, by_origin: bool = True, reason: str = "no-data") -> InvalidResponse:
    return InvalidResponse(response(200, body), BODY, reason, by_origin)


def test_the_status_of_an_error_inside_a_success_counts() -> None:
    assert status_of(response(200, IN_200)) == 429
    assert status_of(response(200, {"error": "no"})) == 400
    assert status_of(response(200, {"data": []})) == 200
    assert status_of(response(500, IN_200)) == 500
    compressed = response(200, gzip.compress(orjson.dumps(IN_200)), Content_Encoding="gzip")
    assert (status_of(compressed), is_outage(compressed)) == (429, True)
    assert status_of(response(200, b"no gzip", Content_Encoding="gzip")) == 200
    assert status_of(response(300, IN_200)) == 300


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, Blame.CALL), (401, Blame.EVERYBODY), (403, Blame.CALL), (404, Blame.CALL), (413, Blame.CALL),
        (429, Blame.EVERYBODY), (499, Blame.CALL), (500, Blame.UNKNOWN), (502, Blame.UNKNOWN),
        (503, Blame.EVERYBODY), (504, Blame.UNKNOWN), (529, Blame.EVERYBODY),
    ],
)  # fmt: skip
def test_what_a_status_blames(status: int, expected: Blame) -> None:
    assert blame(failed(status)) is expected


def test_an_error_with_a_wait_is_about_the_rate_and_not_the_call() -> None:
    for status in (400, 500):
        assert blame(failed(status, Retry_After="3")) is Blame.EVERYBODY
    assert blame(ErrorResponse(response(200, {"data": []}, Retry_After="3"), BODY)) is Blame.CALL


def test_the_proxys_own_errors_say_what_they_are_about() -> None:
    assert blame(UpstreamDown("down")) is Blame.EVERYBODY
    assert blame(UpstreamStalled("stalled")) is Blame.UNKNOWN


@pytest.mark.parametrize(("status", "expected"), [(400, False), (428, False), (429, True), (499, False), (500, True)])
def test_a_fallback_may_do_better_after_an_outage(status: int, expected: bool) -> None:
    assert is_outage(response(status, {})) is expected


def test_refusals_for_limits() -> None:
    for refused in (failed(429), failed(503, Retry_After="1"), failed(529, retry_after_ms="5")):
        assert rate_limit_refusal(refused) == refused
    in_200 = invalid(IN_200)
    assert rate_limit_refusal(in_200) == ErrorResponse(in_200.response, BODY)


@pytest.mark.parametrize(
    "other",
    [
        failed(503), failed(500, Retry_After="1"), failed(400, Retry_After="1"),
        failed(429, {"error": {"code": "insufficient_quota"}}), failed(429, {"error": {"type": "budget_exceeded"}}),
        failed(429, x_should_retry="false"), Overloaded("busy"),
        embedded(FetchRequest(client_request_for(["a"], [b"k"]), [b"k"], Policy(0.0))),
    ],
)  # fmt: skip
def test_what_does_not_pass_by_waiting_is_no_refusal_for_limits(other: Any) -> None:
    assert rate_limit_refusal(other) is None


def test_a_429_with_other_codes_passes() -> None:
    assert rate_limit_refusal(failed(429, {"error": {"code": "tokens", "type": 7}})) is not None
    assert rate_limit_refusal(failed(429, b"no JSON", x_should_retry="true")) is not None


@pytest.mark.parametrize(
    ("status", "of_own_body", "of_another"),
    [(401, True, True), (403, True, False), (404, True, False), (400, False, False), (429, False, False)],
)
def test_which_statuses_refuse_the_credential_or_the_model(status: int, of_own_body: bool, of_another: bool) -> None:
    assert is_verdict(failed(status), is_own_body=True) is of_own_body
    assert is_verdict(failed(status), is_own_body=False) is of_another


def test_the_proxys_own_errors_are_about_no_credential() -> None:
    assert not is_verdict(UpstreamDown("down"), is_own_body=True)
    assert not is_about_credential(UpstreamDown("down"))
    assert is_about_credential(failed(499))
    assert not is_about_credential(failed(500))


def test_an_invalid_response_of_the_upstream_itself_confirms_the_credential_unless_it_is_an_error() -> None:
    assert invalid({}).confirms
    assert not invalid({}, by_origin=False).confirms
    assert not invalid({}, reason="error-in-200").confirms


QUOTING = {"error": {"message": "a text", "type": "a text", "code": "rate_limit_exceeded", "param": "a text"}}


def test_another_client_reads_the_status_the_known_codes_and_the_rate_limits() -> None:
    upstreams = response(
        429, QUOTING, Retry_After="3", retry_after_ms="9", X_RateLimit_Remaining="a", RateLimit="b",
        anthropic_ratelimit_tokens_reset="c", x_should_retry="true", X_Note="a text", Set_Cookie="a text",
    )  # fmt: skip
    own = in_own_words(upstreams)
    assert (own.status, own.reason) == (429, "")
    assert orjson.loads(own.body)["error"] == {
        "message": "The upstream responded with status 429 to a call that had items of several requests.",
        "type": "upstream_error", "param": None, "code": "rate_limit_exceeded",
    }  # fmt: skip
    assert {name.lower(): value for name, value in own.headers.items()} == {
        "content-type": "application/json", "retry-after": "3", "retry-after-ms": "9", "x-ratelimit-remaining": "a",
        "ratelimit": "b", "anthropic-ratelimit-tokens-reset": "c", "x-should-retry": "true",
    }  # fmt: skip
    assert b"a text" not in own.body


def test_the_wait_that_a_refusal_states_in_its_body_is_kept_beside_the_proxys_own_words() -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"}]
    refusal = failed(429, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": details}})
    own = without_quotes(refusal)
    assert isinstance(own, ErrorResponse)
    assert own.retry_after_s == 1.5
    assert dict(own.response.headers) == {"Content-Type": "application/json"}
    assert rate_limit_refusal(own) is own
    other = without_quotes(failed(429, {}))
    assert isinstance(other, ErrorResponse)
    assert other.retry_after_s is None


def test_a_client_gets_the_fields_of_its_own_call_except_those_about_the_body_that_it_does_not_get() -> None:
    given = response(
        200, {}, X_Note="a", x_ratelimit_remaining="7", ETag="b", Content_Length="9", Content_Type="c",
        Signature="d", Connection="X-Hop", X_Hop="e",
    ).headers  # fmt: skip
    assert dict(relayed_fields(given, is_unmerged=True)) == {"X-Note": "a", "x-ratelimit-remaining": "7"}
    assert dict(relayed_fields(given, is_unmerged=False)) == {"x-ratelimit-remaining": "7"}


@pytest.mark.parametrize(("status", "body", "code"), [(200, IN_200, 429), (400, b"a text", "upstream_error")])
def test_the_code_of_an_error_inside_a_success_is_its_status(status: int, body: Any, code: object) -> None:
    own = in_own_words(response(status, body))
    assert own.status == status
    assert orjson.loads(own.body)["error"]["code"] == code


def test_a_failure_without_quotes_keeps_what_it_is() -> None:
    error = Overloaded("busy")
    assert without_quotes(error) is error
    given = invalid({"data": "a text"})
    shown = without_quotes(given)
    assert isinstance(shown, InvalidResponse)
    assert (shown.reason, shown.by_origin) == (given.reason, given.by_origin)
    assert b"a text" not in shown.response.body
    kept = without_request(failed(429, QUOTING))
    assert kept.body == b""
    assert b"a text" not in kept.response.body


def test_usage_of_several_calls_is_their_sum_and_that_of_one_has_all_fields() -> None:
    request = FetchRequest(client_request_for(["a"], [b"k"]), [b"k"], Policy(0.0))
    one = embedded(request, usage={"prompt_tokens": 3, "total_tokens": 4, "cost": 1})
    two = embedded(request, usage={"prompt_tokens": 5, "total_tokens": 6})
    assert usage_of([one]) == {"prompt_tokens": 3, "total_tokens": 4, "cost": 1}
    assert usage_of([one, two]) == {"prompt_tokens": 8, "total_tokens": 10}


def test_a_client_of_a_merged_call_gets_only_the_fields_about_rate_limits() -> None:
    given = CIMultiDict(
        {"x-ratelimit-remaining-requests": "7", "Content-Length": "9", "ETag": "x", "Via": "a", "Connection": "close"}
    )
    assert list(relayed_fields(given, is_unmerged=False).items()) == [("x-ratelimit-remaining-requests", "7")]
    assert list(relayed_fields(given, is_unmerged=True).items()) == [
        ("x-ratelimit-remaining-requests", "7"),
        ("Via", "a"),
    ]
