"""The limits on calls and items a second that refusals teach: measured, guessed, tested, forgotten."""

import math

import pytest

from proxy.pacing.learned_rates import CALM_CALLS, LearnedRates
from proxy.pacing.quotas import Cost
from proxy.pacing.sent_call import SentCall


def call(items: int = 2, at_s: float = 0.0) -> SentCall:
    return SentCall(Cost(items, 1), at_s, 1)


def measured(calls: int, items: int = 2) -> LearnedRates:
    """With so many calls accepted since time 0."""
    rates = LearnedRates()
    rates.measure_from(0.0)
    for _ in range(calls):
        rates.accepted(items)
    return rates


def learned(calls: int = 40, items: int = 2, now_s: float = 10.0) -> LearnedRates:
    rates = measured(calls, items)
    rates.learn(call(items), now_s, is_probe=False, largest=items)
    return rates


def test_what_was_accepted_until_a_refusal_is_the_rate() -> None:
    rates = learned(40, now_s=10.0)
    assert rates.is_learned
    assert rates.calls.refused_at == 4
    assert rates.items.refused_at == 8
    assert 3.5 < rates.calls.per_s < 4
    assert (rates.calls.accepted, rates.items.accepted, rates.began_at_s) == (0, 0, 10.0)


def test_a_second_is_the_least_time_that_is_measured() -> None:
    assert learned(8, now_s=0.1).calls.refused_at == 8


def test_few_calls_tell_no_rate_until_a_second_refusal_soon_after() -> None:
    rates = measured(3)
    rates.learn(call(), 1.0, is_probe=False, largest=2)
    assert not rates.is_learned
    assert rates.cut_at_s == 1.0
    rates.accepted(2)
    rates.learn(call(), 10.9, is_probe=False, largest=2)
    assert rates.is_learned


@pytest.mark.parametrize(("accepted", "now_s"), [(1, 11.0), (0, 2.0)])
def test_a_later_refusal_or_one_without_any_accepted_call_is_an_accident(accepted: int, now_s: float) -> None:
    rates = measured(3)
    rates.learn(call(), 1.0, is_probe=False, largest=2)
    for _ in range(accepted):
        rates.accepted(2)
    rates.learn(call(), now_s, is_probe=False, largest=2)
    assert not rates.is_learned


def test_a_refused_probe_tells_no_rate() -> None:
    rates = measured(40)
    rates.learn(call(), 10.0, is_probe=True, largest=2)
    assert not rates.is_learned
    assert rates.began_at_s == 10.0


def test_a_call_that_may_be_too_large_changes_no_rate() -> None:
    rates = learned()
    before = rates.calls.per_s
    rates.accepted(2)
    rates.learn(call(3), 20.0, is_probe=False, largest=2)
    assert rates.calls.per_s == before
    rates.accepted(2)
    rates.learn(call(2), 30.0, is_probe=False, largest=2)
    assert rates.calls.per_s < before


def test_items_get_a_rate_that_calls_of_the_sizes_seen_keep() -> None:
    rates = measured(40, items=2)
    rates.learn(call(2), 10.0, is_probe=False, largest=50)
    assert rates.items.per_s >= 50 * rates.calls.per_s * 0.9


def test_calls_and_items_are_paid_for() -> None:
    rates = learned(40, items=2, now_s=10.0)
    assert rates.take(call(2), 10.0, is_blocked=False) is False
    assert rates.ready_at_s == max(rates.calls.ready_at_s, rates.items.ready_at_s)
    assert rates.ready_at_s == pytest.approx(10 + 1 / rates.calls.per_s)
    rates.take(call(200), 10.0, is_blocked=False)
    assert rates.ready_at_s == rates.items.ready_at_s > rates.calls.ready_at_s


def guessed(*, accepted: int = 3, in_flight: int = 1) -> LearnedRates:
    rates = measured(accepted)
    rates.guess(3.0, 1.0, in_flight=in_flight, unit=2)
    return rates


def test_a_stated_wait_makes_a_guess_of_what_was_accepted_meanwhile() -> None:
    rates = guessed()
    assert rates.calls.per_s == 4 / 4.0
    assert rates.items.per_s == 2.0
    assert (rates.calls.burst, rates.items.burst) == (4, 8)
    assert not rates.may_test


def test_nothing_accepted_makes_no_guess_and_ends_one() -> None:
    rates = measured(0)
    rates.guess(3.0, 1.0, in_flight=0, unit=2)
    assert not rates.is_learned
    rates = guessed()
    rates.measure_from(1.0)
    rates.guess(3.0, 2.0, in_flight=0, unit=2)
    assert not rates.is_learned
    rates.accepted(2)
    assert not rates.may_test


def test_a_guess_is_tested_once_an_accepted_call_has_ended_by_one_call_at_a_time() -> None:
    rates, test = guessed(), call()
    assert rates.take(call(), 1.0, is_blocked=True) is False
    rates.accepted(2)
    assert rates.may_test
    assert rates.take(call(), 5000.0, is_blocked=False) is False  # it may go anyway
    assert rates.take(test, 5000.0, is_blocked=True) is True
    assert not rates.may_test
    assert rates.take(call(), 5000.0, is_blocked=True) is False
    assert not rates.ends(call())
    assert rates.ends(test)
    assert not rates.ends(test)
    assert rates.may_test


def test_a_call_before_the_rate_allows_it_is_a_test() -> None:
    rates = guessed()
    rates.accepted(2)
    for _ in range(20):
        rates.calls.take(1, 1.0)
    assert rates.ready_at_s > 1.0
    assert rates.take(call(), 1.0, is_blocked=False) is True


def test_three_accepted_tests_disprove_a_guess() -> None:
    rates = guessed()
    assert [rates.accepted_test() for _ in range(3)] == [False, False, True]
    assert not rates.is_learned
    assert rates.calls.burst == rates.items.burst == 0


def test_a_refused_test_confirms_a_guess_that_was_made_of_enough() -> None:
    rates = guessed(accepted=3, in_flight=1)
    rates.accepted(2)
    rates.refused_test()
    assert rates.is_learned
    assert (rates.calls.burst, rates.items.burst) == (0, 0)
    assert not rates.may_test
    few = guessed(accepted=2, in_flight=1)
    few.refused_test()
    assert not few.is_learned


def test_with_many_accepted_calls_limits_grow_faster() -> None:
    usual, calm = learned(), learned()
    for rates in (usual, calm):
        for each in (rates.calls, rates.items):
            each.refused_at = each.per_s  # near enough to grow slowly
            each.doubt = 0.0
    calm.calls.accepted = 50.0 * CALM_CALLS
    usual.grow(11.0, largest=2)
    calm.grow(11.0, largest=2)
    assert calm.calls.per_s > usual.calls.per_s
    assert calm.items.per_s > usual.items.per_s


def test_limits_grow_for_a_call_of_any_size() -> None:
    rates = learned()
    before = rates.items.per_s
    rates.grow(11.0, largest=0)
    assert rates.items.per_s > before


def test_everything_may_be_forgotten() -> None:
    rates = guessed()
    rates.accepted(2)
    test = call()
    rates.take(test, 1.0, is_blocked=True)
    rates.forget()
    assert rates.ready_at_s == 0.0
    assert not rates.is_learned
    assert not rates.may_test
    assert not rates.ends(test)
    assert rates.calls.per_s == math.inf
