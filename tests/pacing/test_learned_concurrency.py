"""How many calls may be in flight, as refusals teach it."""

import math

from proxy.pacing.learned_concurrency import LearnedConcurrency
from proxy.pacing.quotas import Cost
from proxy.pacing.sent_call import SentCall


def call(in_flight: int, at_s: float = 0.0, items: int = 1) -> SentCall:
    return SentCall(Cost(items, 1), at_s, in_flight)


def accept(learned: LearnedConcurrency, calls: int, items: int = 1, now_s: float = 1.0) -> None:
    for _ in range(calls):
        learned.accepted(call(1, items=items), now_s)


def explains(learned: LearnedConcurrency, one: SentCall, in_flight: int, *, is_probe: bool, in_a_row: int = 1) -> bool:
    return learned.explains(one, in_flight, is_probe=is_probe, in_a_row=in_a_row)


def refused(in_flight: int = 4, at_s: float = 0.0, now_s: float = 1.0) -> LearnedConcurrency:
    """With ``in_flight`` that were accepted when one more was refused."""
    learned = LearnedConcurrency()
    learned.refused(call(in_flight + 1, at_s), in_flight, now_s)
    return learned


def test_nothing_is_known_at_first() -> None:
    learned = LearnedConcurrency()
    assert not learned.is_learned
    assert learned.has_room(10**6)


def test_after_a_refusal_one_call_less_than_were_accepted_may_be_in_flight() -> None:
    learned = refused(4)
    assert learned.is_learned
    assert learned.has_room(2)
    assert not learned.has_room(3)


def test_one_call_may_always_be_in_flight() -> None:
    for in_flight in (0, 1):
        learned = refused(in_flight)
        assert learned.has_room(0)
        assert not learned.has_room(1)


def test_four_accepted_calls_open_the_window_again_up_to_the_limit() -> None:
    learned = refused(4)
    accept(learned, 3)
    assert not learned.has_room(3)
    accept(learned, 100)
    assert learned.has_room(3)
    assert not learned.has_room(4)


def test_another_refusal_closes_the_window_but_forgets_no_limit() -> None:
    learned = refused(4)
    learned.is_known = True
    learned.begin_again()
    assert not learned.is_known
    assert learned.is_learned
    assert learned.has_room(0)
    assert not learned.has_room(1)
    accept(learned, 1000)
    assert not learned.is_known


def test_it_is_known_when_far_more_calls_as_large_are_accepted_than_a_rate_would_allow() -> None:
    learned = LearnedConcurrency()
    learned.refused(call(5, items=40), 4, 1.0)
    accept(learned, 100, items=1)
    assert not learned.is_known  # the refusal may have been about its size
    accept(learned, 12, items=40, now_s=1.5)
    assert not learned.is_known
    accept(learned, 1, items=40, now_s=1.5)
    assert learned.is_known


def test_calls_that_are_accepted_as_a_rate_allows_them_tell_nothing() -> None:
    learned = refused(4, now_s=1.0)
    for second in range(100):
        accept(learned, 4, now_s=2.0 + second)
    assert not learned.is_known


def test_a_known_limit_explains_a_refusal_also_of_no_more_calls_than_before() -> None:
    learned = refused(4, now_s=1.0)
    accept(learned, 9)
    assert learned.is_known
    assert explains(learned, call(2, at_s=2.0), 1, is_probe=False)
    assert explains(learned, call(1, at_s=2.0), 0, is_probe=False)
    assert explains(learned, call(1, at_s=2.0), 0, is_probe=False, in_a_row=3)
    assert not explains(learned, call(1, at_s=2.0), 0, is_probe=False, in_a_row=4)
    learned.refused(call(1, at_s=2.0), 0, 3.0)
    assert learned.is_known
    learned.refused(call(1, at_s=4.0), 0, 5.0)
    assert not learned.is_known  # nothing was accepted in between


def test_calls_that_were_sent_since_do_not_raise_the_limit() -> None:
    learned = refused(4, now_s=1.0)
    learned.refused(call(5, at_s=2.0), 7, 3.0)
    accept(learned, 100)
    assert learned.has_room(3)
    assert not learned.has_room(4)


def test_twenty_calls_at_the_limit_raise_it_by_one() -> None:
    learned = refused(4)
    accept(learned, 20)
    for _ in range(19):
        learned.grow(call(4), calm_calls=1000)
    assert not learned.has_room(4)
    learned.grow(call(4), calm_calls=1000)
    learned.grow(call(4), calm_calls=1000)
    assert learned.has_room(4)
    assert not learned.has_room(5)


def test_calls_below_the_limit_say_nothing_of_it() -> None:
    learned = refused(4)
    for _ in range(1000):
        accept(learned, 1)
        learned.grow(call(3), calm_calls=100)
    assert not learned.has_room(4)


def test_with_many_accepted_calls_since_a_refusal_it_grows_faster() -> None:
    learned = refused(4)
    accept(learned, 900)
    for _ in range(4):
        learned.grow(call(4), calm_calls=100)
    assert learned.has_room(4)
    learned.refused(call(6, at_s=2.0), 5, 3.0)  # the calls are counted from here
    accept(learned, 20)
    learned.grow(call(5), calm_calls=100)
    learned.grow(call(5), calm_calls=100)
    assert not learned.has_room(5)


def test_a_refusal_is_explained_by_more_calls_than_were_known_to_be_accepted() -> None:
    learned = refused(4, at_s=0.0, now_s=1.0)
    assert explains(learned, call(6, at_s=2.0), 5, is_probe=False)
    assert explains(learned, call(5, at_s=2.0), 4, is_probe=False)
    assert not explains(learned, call(4, at_s=2.0), 3, is_probe=False)
    assert not explains(learned, call(6, at_s=2.0), 0, is_probe=False)
    assert not explains(learned, call(6, at_s=2.0), 5, is_probe=True)


def test_what_was_sent_before_the_last_refusal_is_explained_by_it() -> None:
    learned = refused(4, at_s=0.0, now_s=1.0)
    assert explains(learned, call(1, at_s=0.5), 0, is_probe=True)
    assert not explains(learned, call(1, at_s=1.0), 0, is_probe=True)


def test_of_refusals_of_one_burst_the_first_one_says_when_it_was() -> None:
    learned = refused(4, at_s=0.0, now_s=1.0)
    learned.refused(call(5, at_s=0.5), 3, 9.0)
    assert not explains(learned, call(1, at_s=2.0), 0, is_probe=True)
    assert not learned.has_room(2)  # but how many were accepted is known better
    assert learned.has_room(1)
    learned.refused(call(5, at_s=2.0), 3, 9.0)
    assert explains(learned, call(1, at_s=8.0), 0, is_probe=True)


def test_a_refusal_begins_the_count_of_accepted_calls_again() -> None:
    learned = refused(4)
    accept(learned, 3000)
    learned.refused(call(5, at_s=2.0), 4, 3.0)
    accept(learned, 4)
    learned.grow(call(4), calm_calls=100)
    learned.grow(call(4), calm_calls=100)
    assert not learned.has_room(4)
    assert math.isfinite(learned._most)
