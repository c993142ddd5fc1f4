"""The limits of one lane on requests and tokens: a call is within all of them, and each counts its own unit."""

import math

from proxy.pacing.quotas import Cost, Quotas
from proxy.protocol.rate_limits import Quota, RateLimits

CALL = Cost(items=3, tokens=100)


def state(quotas: Quotas, in_flight: tuple[Cost, ...] = (), now_s: float = 0.0, **by_name: Quota) -> None:
    quotas.state(RateLimits(quotas=by_name), lambda: in_flight, now_s)


def test_without_any_a_call_is_ready_at_once() -> None:
    quotas = Quotas()
    assert not quotas
    assert quotas.ready_at_s(CALL, 7.0) == quotas.calls_per_s * -1 == -math.inf
    assert not quotas.is_empty(0.0)
    assert quotas.largest(10**6) == 10**6


def test_the_last_of_all_limits_decides() -> None:
    quotas = Quotas()
    state(quotas, requests=Quota(limit=60, remaining=0, reset_s=60.0))
    state(quotas, tokens=Quota(limit=200, remaining=0, reset_s=20.0))
    assert len(quotas) == 2
    assert quotas.ready_at_s(CALL, 0.0) == 10.0  # 100 tokens; a request takes a second
    assert quotas.ready_at_s(Cost(items=1, tokens=1), 0.0) == 1.0


def test_each_counts_its_own_unit_and_items_are_none() -> None:
    quotas = Quotas()
    state(
        quotas, requests=Quota(limit=5, remaining=5, reset_s=10.0), tokens=Quota(limit=500, remaining=500, reset_s=10.0)
    )
    quotas.take(CALL, 0.0)
    assert quotas.ready_at_s(Cost(items=9, tokens=400), 0.0) == 0.0
    assert quotas.ready_at_s(Cost(items=9, tokens=401), 0.0) > 0.0
    for _ in range(4):
        assert not quotas.is_empty(0.0)
        quotas.take(Cost(items=1, tokens=0), 0.0)
    assert quotas.is_empty(0.0)


def test_calls_in_flight_count_in_their_unit() -> None:
    tokens, requests = Quotas(), Quotas()
    state(tokens, (CALL, CALL), tokens_day=Quota(limit=250, remaining=250, reset_s=1.0))
    assert tokens.ready_at_s(Cost(items=1, tokens=50), 0.0) == 0.0
    assert tokens.ready_at_s(Cost(items=1, tokens=51), 0.0) == 1.0
    state(requests, (CALL, CALL), requests=Quota(limit=3, remaining=3, reset_s=1.0))
    assert not requests.is_empty(0.0)
    requests.take(CALL, 0.0)
    assert requests.is_empty(0.0)


def test_the_operators_limit_is_one_of_a_minute_that_is_full_at_first() -> None:
    quotas = Quotas()
    quotas.configure("requests", 30.0)
    assert quotas.calls_per_s == 0.5
    for _ in range(30):
        assert quotas.ready_at_s(CALL, 0.0) == 0.0
        quotas.take(CALL, 0.0)
    assert quotas.ready_at_s(CALL, 0.0) == 2.0


def test_the_lowest_rate_of_requests_counts_and_tokens_have_none() -> None:
    quotas = Quotas()
    quotas.configure("tokens", 1.0)
    assert quotas.calls_per_s == math.inf
    quotas.configure("requests", 120.0)
    quotas.configure("requests_day", 60.0)
    assert quotas.calls_per_s == 1.0
    window = Quotas()
    state(window, requests=Quota(limit=10, remaining=10, reset_s=20.0))
    state(window, requests=Quota(limit=10, remaining=10, reset_s=10.0), now_s=10.0)
    assert window.calls_per_s == 0.5  # by its window, as nothing comes back in it


def test_no_call_is_larger_than_a_limit_on_tokens_that_allows_any() -> None:
    quotas = Quotas()
    quotas.configure("requests", 5.0)
    quotas.configure("tokens", 900.5)
    quotas.configure("tokens_day", 0.5)
    assert quotas.largest(1000) == 900
    assert quotas.largest(800) == 800


def test_an_upstream_can_not_state_any_number_of_names() -> None:
    quotas = Quotas()
    named = {f"requests_{n}": Quota(remaining=1.0) for n in range(20)}
    quotas.state(RateLimits(quotas=named), list, 0.0)
    assert len(quotas) == 16
    state(quotas, requests_3=Quota(limit=9, remaining=0, reset_s=9.0))
    assert quotas.is_empty(0.0)


def test_a_call_of_a_bucket_is_kept_for_urgent_requests_and_of_tokens_only_the_cushion() -> None:
    quotas = Quotas()
    quotas.configure("requests", 60.0)
    quotas.configure("tokens", 200.0)
    bulk = Cost(items=3, tokens=100, is_bulk=True)
    for _ in range(59):
        quotas.take(Cost(items=1, tokens=0), 0.0)
    assert quotas.ready_at_s(CALL, 0.0) == 0.0
    assert quotas.ready_at_s(bulk, 0.0) == 1.5  # a call, and what comes in half a second
    quotas.take(Cost(items=1, tokens=100), 10.0)
    assert quotas.ready_at_s(bulk, 20.0) == 20.0


def test_a_refusal_is_explained_by_a_bucket_that_has_too_little() -> None:
    quotas = Quotas()
    assert not quotas.explain(CALL, 0.0)
    state(quotas, requests=Quota(limit=10, remaining=0, reset_s=1.0))
    assert quotas.explain(CALL, 0.0)
    assert not quotas.explain(CALL, 0.2)
    state(quotas, requests=Quota(limit=10, remaining=0, reset_s=0.5), now_s=0.5)
    assert quotas.has_window
    assert not quotas.explain(CALL, 0.5)


def test_of_a_window_bulk_takes_every_call() -> None:
    window = Quotas()
    assert not window.has_window
    state(window, requests=Quota(limit=10, remaining=2, reset_s=20.0))
    assert not window.has_window
    state(window, requests=Quota(limit=10, remaining=1, reset_s=10.0), now_s=10.0)
    assert window.has_window
    assert window.ready_at_s(Cost(items=3, tokens=100, is_bulk=True), 10.0) == 10.0
