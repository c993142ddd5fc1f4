"""A limit that refusals teach: a token bucket, measured between refusals, as long as it may be a limit."""

import math

import pytest

from proxy.pacing.learned_rate import BURST_S, LearnedRate


def learned(per_s: float = 10.0, now_s: float = 0.0) -> LearnedRate:
    """With an empty bucket, and nothing that is measured yet."""
    rate = LearnedRate()
    rate.learn(per_s / 0.95, now_s, calls=1000, unit=1)
    rate.measure_from(now_s)
    return rate


def test_nothing_is_known_at_first() -> None:
    rate = LearnedRate()
    rate.take(1000, 5.0)
    assert not rate.is_learned
    assert rate.ready_at_s(1000) <= 5.0
    assert rate.burst == math.inf


def test_a_learned_rate_is_slightly_below_what_was_measured() -> None:
    assert learned(10.0).per_s == pytest.approx(10.0)
    assert learned(10.0).refused_at == pytest.approx(10.0 / 0.95)


def test_after_a_refusal_the_bucket_is_empty() -> None:
    rate = learned(10.0, now_s=3.0)
    assert rate.ready_at_s(1) == pytest.approx(3.1)
    rate.take(1, 3.1)
    assert rate.ready_at_s(1) == pytest.approx(3.2)


def test_what_comes_in_a_pause_may_leave_at_once_up_to_a_second_of_it() -> None:
    rate = learned(10.0)
    for _ in range(10):
        assert rate.ready_at_s(1) <= 5.0
        rate.take(1, 5.0)
    assert rate.ready_at_s(1) == pytest.approx(5.1)


def test_what_is_larger_than_a_burst_leaves_when_all_of_it_is_there_and_is_owed() -> None:
    rate = learned(10.0)
    assert rate.ready_at_s(50) == pytest.approx(BURST_S)
    rate.take(50, 1.0)
    assert rate.ready_at_s(1) == pytest.approx(1.0 + 4.1)


def test_no_call_waits_for_longer_than_half_a_minute() -> None:
    rate = learned(10.0)
    rate.take(100_000, 1.0)
    assert rate.ready_at_s(1) == 31.0


def test_what_is_owed_is_paid_at_the_rate_that_was_learned_since() -> None:
    rate = learned(1.0)
    rate.take(20, 0.0)
    before_s = rate.ready_at_s(1)
    for _ in range(50):
        rate.grow(1.0, 0.0, unit=1)
    assert rate.ready_at_s(1) < before_s


def test_before_the_first_refusal_no_less_than_a_second_is_measured() -> None:
    rate = LearnedRate()
    rate.measure_from(-1.0)
    rate.accepted = 9.0
    assert rate.measured(1, 1.0) == 9.5 / 2
    rate.measure_from(0.9)
    rate.accepted = 9.0
    assert rate.measured(1, 1.0) == 9.5


def test_a_rate_is_measured_from_when_the_bucket_was_empty() -> None:
    rate = learned(10.0)
    for n in range(1, 20):
        rate.take(1, n / 10)
        rate.accepted += 1
    assert rate.measured(1, 2.0) == pytest.approx(19.5 / 2)


def test_the_time_in_which_the_bucket_was_full_does_not_count() -> None:
    rate = learned(10.0)
    for n in range(10):
        rate.take(1, 60.0 + n / 1000)
        rate.accepted += 1
    assert rate.measured(1, 60.01) == pytest.approx(10.5 / (BURST_S + 0.01))


def test_what_was_in_flight_at_a_refusal_counts_when_it_is_accepted() -> None:
    rate = LearnedRate()
    rate.measure_from(-1.0)
    rate.accepted = 9.5
    rate.learn(rate.measured(1, 1.0), 1.0, calls=9, unit=1)
    rate.accept_late(2)
    assert rate.per_s == pytest.approx(0.95 * 12 / 2)
    rate = learned(10.0)
    rate.accepted = 9.5
    rate.learn(rate.measured(1, 1.25), 1.25, calls=9, unit=1)
    rate.accept_late(100)
    assert rate.per_s == pytest.approx(9.5)  # it is no reason to raise a rate
    rate.halve_burst(2.0)
    rate.accept_late(100)
    assert rate.per_s == pytest.approx(9.5)


def test_what_was_refused_is_not_taken() -> None:
    rate = learned(10.0)
    rate.take(5, 0.5)
    rate.give_back(5)
    assert rate.ready_at_s(5) == pytest.approx(0.5)


def test_a_refusal_lowers_a_rate_to_what_was_measured_but_not_by_much_at_once() -> None:
    rate = learned(10.0)
    rate.take(10, 1.0)
    rate.learn(9.0, 1.0, calls=9, unit=1)
    assert rate.per_s == pytest.approx(0.95 * 9)
    assert rate.refused_at == 9.0
    rate.learn(0.1, 2.0, calls=9, unit=1)
    assert rate.per_s == pytest.approx(0.6 * 0.95 * 9)


def test_no_refusal_raises_a_rate() -> None:
    rate = learned(10.0)
    rate.learn(50.0, 1.0, calls=9, unit=1)
    assert rate.per_s == pytest.approx(9.5)


def test_of_a_limit_of_which_most_was_left_it_is_not_known_where_it_is() -> None:
    rate = learned(10.0)
    rate.learn(7.0, 1.0, calls=9, unit=1)
    assert rate.refused_at == pytest.approx(10.0 / 0.95)
    assert rate.per_s == pytest.approx(0.95 * 7)


def test_what_is_left_is_low_or_much() -> None:
    rate = learned(10.0)
    assert (rate.is_low(1, 0.2), rate.has_much(1, 0.2)) == (True, False)
    assert (rate.is_low(1, 0.4), rate.has_much(1, 0.4)) == (False, False)
    assert (rate.is_low(1, 0.6), rate.has_much(1, 0.6)) == (False, True)
    assert (rate.is_low(4, 0.6), rate.has_much(4, 0.6)) == (True, False)
    assert not LearnedRate().has_much(1, 0.0)


def test_a_burst_may_be_less_and_grows_again() -> None:
    rate = learned(10.0)
    rate.halve_burst(1.0)
    assert rate.burst == 5.0
    assert rate.ready_at_s(1) == pytest.approx(1.1)
    for _ in range(200):
        rate.grow(1.0, 1.0, unit=1)
    assert rate.burst_s == BURST_S
    for _ in range(20):
        rate.halve_burst(1.0)
    assert rate.burst_s == 0.01


def test_a_rate_grows_quickly_up_to_where_it_was_refused() -> None:
    rate = learned(10.0)
    rate.refused_at = 20.0
    rate.grow(1.0, 0.0, unit=1)
    assert rate.per_s > 10.1
    rate = learned(10.0)
    rate.refused_at = 10.0
    rate.grow(1.0, 0.0, unit=1)
    assert rate.per_s < 10.01


def test_a_rate_of_few_calls_is_doubted() -> None:
    rates = []
    for calls in (1, 9):
        rate = LearnedRate()
        rate.learn(10.0, 0.0, calls=calls, unit=1)
        for _ in range(100):
            rate.grow(1.0, 0.0, unit=1)
        rates.append(rate.per_s)
    assert rates[0] > 20.0
    assert rates[1] < 10.3


def test_a_rate_is_at_least_a_call_a_minute() -> None:
    rate = learned(10.0)
    for n in range(50):
        rate.learn(0.0, float(n), calls=0, unit=40)
    assert rate.per_s == 40 / 60


def test_a_rate_that_no_refusal_lowers_any_more_is_forgotten() -> None:
    rate, highest = learned(4.0), 0.0
    accepted = 0
    while rate.is_learned:
        accepted += 1
        rate.grow(max(1.0, accepted / 100), accepted / 10, unit=1)
        highest = max(highest, rate.per_s if rate.is_learned else 0.0)
    assert 5_000 < highest <= 10_000
    assert (rate.refused_at, rate.doubt) == (math.inf, 0.0)
    rate.take(1, accepted / 10)
    assert rate.ready_at_s(1) <= accepted / 10


def test_a_rate_of_items_is_forgotten_by_its_calls() -> None:
    rate = LearnedRate(per_s=640_000.0, refused_at=640_000.0)
    rate.grow(10_000.0, 1.0, unit=64)
    assert not rate.is_learned
