"""The wait after refusals that state none."""

import pytest

from proxy.pacing.backoff import Backoff
from proxy.pacing.quotas import Cost
from proxy.pacing.sent_call import SentCall

PER_S = 10.0


def call(at_s: float) -> SentCall:
    return SentCall(Cost(1, 1), at_s, 1)


def refused(backoff: Backoff, at_s: float) -> None:
    backoff.refused(call(at_s), at_s)
    backoff.grow(PER_S, is_other_next=False)


def accepted(backoff: Backoff, at_s: float) -> None:
    backoff.accepted(call(at_s))
    backoff.wait_s = 0.0


def test_the_first_one_takes_a_second_and_each_further_one_twice_as_long() -> None:
    backoff = Backoff()
    waits_s = []
    for n in range(6):
        refused(backoff, float(n))
        waits_s.append(backoff.wait_s)
    assert waits_s == [1, 2, 4, 8, 16, 16]


def test_a_long_one_grows_by_less_before_another_request() -> None:
    backoff = Backoff()
    waits_s = []
    for _ in range(4):
        backoff.grow(PER_S, is_other_next=True)
        waits_s.append(backoff.wait_s)
    assert waits_s == pytest.approx([1, 2, 2 * 2**0.5, 4])


def test_the_next_one_begins_with_half_of_what_was_long_enough() -> None:
    backoff = Backoff()
    refused(backoff, 0.0)
    accepted(backoff, 1.0)
    refused(backoff, 2.0)
    assert backoff.wait_s == 0.5
    accepted(backoff, 2.5)
    for n in range(3, 10):
        refused(backoff, float(n))
        accepted(backoff, n + backoff.wait_s)
    refused(backoff, 10.0)
    assert backoff.wait_s == pytest.approx(2 / PER_S)  # no less than two calls take


def test_a_call_that_is_accepted_without_a_backoff_tells_nothing_of_it() -> None:
    backoff = Backoff()
    backoff.refused(call(0.0), 0.01)  # it waits for nothing: another call was in flight
    backoff.accepted(call(0.06))
    refused(backoff, 2.0)
    assert backoff.wait_s == 1


def test_what_was_too_short_is_not_tried_again_until_something_shorter_is_accepted() -> None:
    backoff = Backoff()
    refused(backoff, 0.0)
    refused(backoff, 0.5)
    backoff.was_too_short()
    accepted(backoff, 1.5)
    refused(backoff, 2.0)
    assert backoff.wait_s == pytest.approx(1.1)
    accepted(backoff, 3.1)
    refused(backoff, 4.0)
    assert backoff.wait_s == pytest.approx(1.1)
    accepted(backoff, 4.4)
    refused(backoff, 5.0)
    assert backoff.wait_s == pytest.approx(0.2)


def test_refusals_in_a_row_have_a_least_wait_whatever_they_state() -> None:
    backoff = Backoff()
    assert [backoff.refused(call(n), n) for n in range(9)] == [0, 0.25, 0.5, 1, 2, 4, 8, 16, 16]


def test_refusals_of_calls_in_flight_together_are_one() -> None:
    backoff = Backoff()
    assert [backoff.refused(call(0.0), n / 1000) for n in range(1, 6)] == [0] * 5
    assert backoff.refusals == 1
