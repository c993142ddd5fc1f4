"""The limits on calls and items a second that refusals teach: measured, suspected, tested, forgotten."""

import math

import pytest

from proxy.pacing.learned_rates import CALM_CALLS, LearnedRates
from proxy.pacing.quotas import Cost
from proxy.pacing.sent_call import SentCall


def call(items: int = 2, at_s: float = 0.0, requests: int = 1, *, is_bulk: bool = False) -> SentCall:
    return SentCall(Cost(items, 1, requests, is_bulk), at_s, 1)


def measured(calls: int, items: int = 2) -> LearnedRates:
    """With so many calls sent and accepted since time 0, when nothing was left."""
    rates = LearnedRates()
    rates.measure_from(0.0)
    for _ in range(calls):
        rates.take(call(items), 0.0, is_blocked=False)
        rates.accepted(call(items))
    return rates


def learned(calls: int = 40, items: int = 2, now_s: float = 10.0) -> LearnedRates:
    rates = measured(calls, items)
    rates.learn(call(items), now_s, is_probe=False, largest=items)
    return rates


def test_what_was_accepted_until_a_refusal_is_the_rate() -> None:
    rates = learned(40, now_s=10.0)
    assert rates.is_learned
    assert rates.calls.refused_at == 4.05  # and half of the call that was refused
    assert rates.items.refused_at == 8.1
    assert 3.5 < rates.calls.per_s < 4
    assert (rates.calls.accepted, rates.items.accepted) == (0, 0)


def test_a_call_that_was_in_flight_at_the_refusal_counts_there() -> None:
    rates = learned(40, now_s=10.0)
    calls_per_s, items_per_s = rates.calls.per_s, rates.items.per_s
    rates.accepted(call(at_s=9.9))
    assert rates.calls.per_s == pytest.approx(calls_per_s + 0.95 / 10)
    assert rates.items.per_s == pytest.approx(items_per_s + 0.95 * 2 / 10)
    assert rates.calls.accepted == 0
    rates.accepted(call(at_s=10.0))
    assert rates.calls.accepted == 1


def test_a_second_is_the_least_time_that_is_measured() -> None:
    assert learned(8, now_s=0.1).calls.refused_at == 8.5


def test_few_calls_tell_no_rate_until_a_second_refusal_soon_after() -> None:
    rates = measured(3)
    rates.learn(call(), 1.0, is_probe=False, largest=2)
    assert not rates.is_learned
    assert rates.cut_at_s == 1.0
    rates.accepted(call(at_s=2.0))
    rates.learn(call(), 10.9, is_probe=False, largest=2)
    assert rates.is_learned


@pytest.mark.parametrize(("accepted", "now_s"), [(1, 11.0), (0, 2.0)])
def test_a_later_refusal_or_one_without_any_accepted_call_is_an_accident(accepted: int, now_s: float) -> None:
    rates = measured(3)
    rates.learn(call(), 1.0, is_probe=False, largest=2)
    for _ in range(accepted):
        rates.accepted(call(at_s=1.5))
    rates.learn(call(), now_s, is_probe=False, largest=2)
    assert not rates.is_learned


def test_a_refused_probe_tells_no_rate() -> None:
    rates = measured(40)
    rates.learn(call(), 10.0, is_probe=True, largest=2)
    assert not rates.is_learned
    assert rates.calls.measured(0, 11.0) == 0


def test_a_call_that_may_be_too_large_changes_no_rate_unless_it_was_merged() -> None:
    rates = learned()
    before = rates.calls.per_s
    rates.learn(call(3), 20.0, is_probe=False, largest=2)
    assert (rates.calls.per_s, rates.calls.burst_s) == (before, 1.0)
    rates.take(call(8), 21.0, is_blocked=False)
    rates.learn(call(3, requests=2), 21.0, is_probe=False, largest=2)
    assert rates.calls.per_s < before


def test_calls_and_items_get_what_requests_of_the_sizes_seen_need_of_the_other() -> None:
    rates = measured(40, items=2)
    rates.learn(call(50), 10.0, is_probe=False, largest=2)
    assert rates.items.per_s == pytest.approx(50 * rates.calls.per_s)
    rates = measured(4, items=2)
    rates.accepted(call(800, requests=20))
    rates.learn(call(40), 10.0, is_probe=False, largest=800)
    assert rates.calls.per_s == pytest.approx(rates.items.per_s / 40)


def test_when_much_was_left_of_both_a_burst_was_too_large() -> None:
    rates = learned()
    calls_per_s, items_per_s = rates.calls.per_s, rates.items.per_s
    rates.learn(call(), 20.0, is_probe=False, largest=2)
    assert (rates.calls.per_s, rates.items.per_s) == (calls_per_s, items_per_s)
    assert (rates.calls.burst_s, rates.items.burst_s) == (0.5, 0.5)


def test_calls_and_items_are_paid_for() -> None:
    rates = learned(40, items=2, now_s=10.0)
    for _ in range(4):
        assert rates.take(call(2), 10.0, is_blocked=False) is False
    one = Cost(2, 1)
    assert rates.ready_at_s(one) == rates.calls.ready_at_s(1) == pytest.approx(10 + 5 / rates.calls.per_s, rel=0.01)
    rates.take(call(200), 10.0, is_blocked=False)
    assert rates.ready_at_s(one) == rates.items.ready_at_s(2) > rates.calls.ready_at_s(1)


def test_a_call_is_kept_for_urgent_requests() -> None:
    rates = learned(40, items=2, now_s=10.0)
    urgent, bulk = Cost(2, 1), Cost(2, 1, is_bulk=True)
    assert rates.ready_at_s(bulk) == pytest.approx(10 + 2 / rates.calls.per_s)
    assert rates.ready_at_s(urgent) == pytest.approx(10 + 1 / rates.calls.per_s)


def test_of_a_limit_that_takes_one_call_at_a_time_none_is_kept() -> None:
    rates = learned(40, items=2, now_s=10.0)
    rates.spread()
    assert rates.ready_at_s(Cost(0, 1, is_bulk=True)) == rates.ready_at_s(Cost(0, 1)) == pytest.approx(10.01)


def test_at_most_half_of_what_comes_in_a_second_is_merged() -> None:
    assert LearnedRates().most_merged == math.inf
    assert learned().most_merged == learned().items.per_s / 2


def test_a_refused_call_took_nothing_if_it_was_sent_after_the_last_refusal() -> None:
    rates = learned(40, now_s=10.0)
    late = call(at_s=11.0)
    rates.take(late, 11.0, is_blocked=False)
    before_s = rates.ready_at_s(Cost(2, 1))
    rates.refused(call(at_s=9.0))
    assert rates.ready_at_s(Cost(2, 1)) == before_s
    rates.refused(late)
    assert rates.ready_at_s(Cost(2, 1)) < before_s


def test_a_known_rate_explains_a_refusal_when_little_was_left() -> None:
    rates = learned(40, now_s=10.0)
    assert rates.explain(call(), 10.0)
    assert not rates.explain(call(), 20.0)
    assert not LearnedRates().explain(call(), 10.0)


def suspected() -> LearnedRates:
    rates = measured(4)
    rates.suspect()
    return rates


def test_a_suspicion_is_tested_once_an_accepted_call_has_ended_by_one_call_at_a_time() -> None:
    rates, test = suspected(), call()
    assert not rates.may_test
    assert rates.take(call(), 1.0, is_blocked=True) is False
    rates.accepted(call())
    assert rates.may_test
    assert rates.take(call(), 1.0, is_blocked=False) is False  # it may go anyway
    assert rates.take(test, 1.0, is_blocked=True) is True
    assert not rates.may_test
    assert rates.take(call(), 1.0, is_blocked=True) is False
    assert not rates.ends(call())
    assert rates.ends(test)
    assert not rates.ends(test)
    assert rates.may_test


def test_a_call_before_a_known_rate_allows_it_is_a_test() -> None:
    rates = learned()
    rates.suspect()
    rates.accepted(call())
    assert rates.ready_at_s(call().cost) > 10.0
    assert rates.take(call(), 10.0, is_blocked=False) is True


def test_three_accepted_tests_end_a_suspicion() -> None:
    rates = suspected()
    rates.accepted(call())
    assert [rates.accepted_test() for _ in range(3)] == [False, False, True]
    assert not rates.may_test


def test_a_refused_test_confirms_it() -> None:
    rates = suspected()
    rates.accepted(call())
    rates.learn(call(), 1.0, is_probe=False, largest=2)
    assert rates.is_learned
    assert not rates.may_test


def test_with_many_accepted_calls_limits_grow_faster() -> None:
    usual, calm = learned(), learned()
    for rates in (usual, calm):
        for each in (rates.calls, rates.items):
            each.refused_at = each.per_s  # near enough to grow slowly
            each.doubt = 0.0
    calm.calls.accepted = 50.0 * CALM_CALLS
    usual.grow(11.0)
    calm.grow(11.0)
    assert calm.calls.per_s > usual.calls.per_s
    assert calm.items.per_s > usual.items.per_s


def test_limits_of_calls_without_items_grow() -> None:
    rates = measured(40, items=0)
    rates.learn(call(0), 10.0, is_probe=False, largest=0)
    before = rates.items.per_s
    rates.grow(11.0)
    assert rates.items.per_s > before


def test_everything_may_be_forgotten() -> None:
    rates = learned()
    rates.suspect()
    rates.accepted(call())
    test = call()
    rates.take(test, 1.0, is_blocked=True)
    rates.forget()
    assert rates.ready_at_s(Cost(2, 1, is_bulk=True)) == 0.0
    assert not rates.is_learned
    assert not rates.may_test
    assert not rates.ends(test)
    assert rates.calls.per_s == math.inf
