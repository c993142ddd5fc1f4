"""What responses of real providers say about their rate limits."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocol.rate_limits import NOTHING_STATED, Quota, of_headers, retry_delay_s

NOW_S = 1_700_000_000.0  # 2023-11-14T22:13:20Z


@pytest.mark.parametrize(
    ("headers", "quotas"),
    [
        (
            {
                "x-ratelimit-limit-requests": "5000",
                "x-ratelimit-remaining-requests": "4999",
                "x-ratelimit-reset-requests": "12ms",
                "x-ratelimit-limit-tokens": "160000",
                "x-ratelimit-remaining-tokens": "159976",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            {
                "requests": Quota(limit=5000, remaining=4999, reset_s=0.012),
                "tokens": Quota(limit=160000, remaining=159976, reset_s=360),
            },
        ),
        (  # Azure
            {"x-ratelimit-remaining-requests": "19", "x-ratelimit-remaining-tokens": "19913"},
            {"requests": Quota(remaining=19), "tokens": Quota(remaining=19913)},
        ),
        (  # Mistral
            {"x-ratelimit-limit-tokens-minute": "500000", "x-ratelimit-remaining-tokens-minute": "499000"},
            {"tokens-minute": Quota(limit=500000, remaining=499000)},
        ),
        (  # Together
            {
                "x-ratelimit-limit": "10",
                "x-ratelimit-remaining": "9",
                "x-ratelimit-reset": "1",
                "x-tokenlimit-limit": "2000",
                "x-tokenlimit-remaining": "1990",
            },
            {"requests": Quota(limit=10, remaining=9, reset_s=1), "tokens": Quota(limit=2000, remaining=1990)},
        ),
        (  # OpenRouter: milliseconds since 1970
            {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1700000030000"},
            {"requests": Quota(limit=20, remaining=0, reset_s=30)},
        ),
        (
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "49",
                "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:25Z",
                "anthropic-ratelimit-input-tokens-remaining": "900",
            },
            {"requests": Quota(limit=50, remaining=49, reset_s=5), "tokens-input": Quota(remaining=900)},
        ),
        (
            {"RateLimit-Limit": "100, 100;w=60", "RateLimit-Remaining": "50", "RateLimit-Reset": "30"},
            {"requests": Quota(limit=100, remaining=50, reset_s=30)},
        ),
        ({"RateLimit": '"default";r=50;t=30'}, {"requests-default": Quota(remaining=50, reset_s=30)}),
        ({"X-Rate-Limit-Remaining": "3"}, {"requests": Quota(remaining=3)}),
        ({"x-ratelimit-limit-tokens": "1,000,000"}, {"tokens": Quota(limit=1_000_000)}),
        ({"x-ratelimit-limit-requests": "-1", "x-ratelimit-remaining-requests": "-1"}, {}),
        ({"x-ratelimit-reset-requests": "60s"}, {}),
        (
            {"x-ratelimit-remaining-requests": "9" * 400, "x-ratelimit-reset-requests": "9" * 400 + "s"},
            {"requests": Quota(remaining=10.0**12, reset_s=86400)},
        ),
        ({"x-ratelimit-remaining-requests": "plenty", "x-ratelimit-reset-requests": "soon"}, {}),
        ({"x-ratelimit-policy": "burst", "limit": "3", "x-limit": "4"}, {}),
    ],
)
def test_quotas_of_providers(headers: dict[str, str], quotas: dict[str, Quota]) -> None:
    assert of_headers(headers, now_s=NOW_S).quotas == quotas


@pytest.mark.parametrize(
    ("headers", "retry_after_s"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:40 GMT"}, 20.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:00 GMT"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "1", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "later"}, None),
        ({"retry-after": "9" * 400}, 3600.0),
        ({"retry-after-ms": "9" * 400}, 3600.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 3600.0),
        ({"retry-after": "1 Jan 99999999999999999999 00:00:00"}, None),
        ({"retry-after-ms": "-3", "retry-after": "2"}, 2.0),
    ],
)
def test_delays_before_the_next_call(headers: dict[str, str], retry_after_s: float | None) -> None:
    assert of_headers(headers, now_s=NOW_S).retry_after_s == retry_after_s


@pytest.mark.parametrize(
    ("error", "delay_s"),
    [
        ({"error": {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17s"}]}}, 17.0),
        ([{"error": {"details": [{"@type": "x/google.rpc.RetryInfo", "retryDelay": "0.350s"}]}}], 0.35),
        ({"error": {"details": [{"@type": "type.googleapis.com/google.rpc.QuotaFailure"}]}}, None),
        ({"error": {"details": [{"@type": "x/google.rpc.RetryInfo", "retryDelay": 3}]}}, None),
        ({"error": "busy"}, None),
        ([], None),
        ("busy", None),
    ],
)
def test_the_delay_in_an_error_of_google(error: Any, delay_s: float | None) -> None:
    assert retry_delay_s(error) == delay_s


def test_a_response_that_says_nothing() -> None:
    assert of_headers({"Content-Type": "application/json"}, now_s=NOW_S) is NOTHING_STATED


@given(
    st.dictionaries(
        st.sampled_from(
            ["retry-after", "retry-after-ms", "ratelimit", "x-ratelimit-reset", "x-ratelimit-remaining-tokens"]
        ),
        st.text(max_size=20) | st.from_regex(r"\d{1,2} Jan \d{1,25} \d\d:\d\d:\d\d [+-]?\d{0,12}", fullmatch=True),
    )
)
def test_no_header_field_is_an_error(headers: dict[str, str]) -> None:
    stated = of_headers(headers, now_s=NOW_S)
    assert all(quota.remaining is None or quota.remaining >= 0 for quota in stated.quotas.values())
    assert stated.retry_after_s is None or stated.retry_after_s >= 0


def test_no_response_states_many_quotas() -> None:
    many = {"RateLimit": ",".join(f'"{i}";r=1;t=1' for i in range(5000))}
    more = {f"x-ratelimit-remaining-{i}-tokens-{word}": "1" for i in range(9) for word in ("minute", "hour", "day")}
    assert len(of_headers(many, now_s=NOW_S).quotas) == 8
    assert len(of_headers(more | many, now_s=NOW_S).quotas) == 8
    assert of_headers({"RateLimit": '"a"' + ";x=1" * 5000 + ";r=1"}, now_s=NOW_S) == NOTHING_STATED
