"""How many calls may be in flight, as refusals teach it."""

import math

from proxy.pacing.learned_concurrency import LearnedConcurrency
from proxy.pacing.quotas import Cost
from proxy.pacing.sent_call import SentCall


def call(in_flight: int, at_s: float = 0.0) -> SentCall:
    return SentCall(Cost(1, 1), at_s, in_flight)


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
    for _ in range(3):
        learned.accepted()
    assert not learned.has_room(3)
    for _ in range(100):
        learned.accepted()
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


def test_thirty_calls_at_the_limit_raise_it_by_one() -> None:
    learned = refused(4)
    for _ in range(20):
        learned.accepted()
    for _ in range(29):
        learned.grow(call(4), calm_calls=1000)
    assert not learned.has_room(4)
    learned.grow(call(4), calm_calls=1000)
    learned.grow(call(4), calm_calls=1000)
    assert learned.has_room(4)
    assert not learned.has_room(5)


def test_calls_below_the_limit_say_nothing_of_it() -> None:
    learned = refused(4)
    for _ in range(1000):
        learned.accepted()
        learned.grow(call(3), calm_calls=100)
    assert not learned.has_room(4)


def test_with_many_accepted_calls_since_a_refusal_it_grows_faster() -> None:
    learned = refused(4)
    for _ in range(900):
        learned.accepted()
    for _ in range(4):
        learned.grow(call(4), calm_calls=100)
    assert learned.has_room(4)
    learned.begin_again()  # the calls are counted from here
    for _ in range(20):
        learned.accepted()
    learned.grow(call(5), calm_calls=100)
    learned.grow(call(5), calm_calls=100)
    assert not learned.has_room(5)


def test_a_refusal_is_explained_by_more_calls_than_were_known_to_be_accepted() -> None:
    learned = refused(4, at_s=0.0, now_s=1.0)
    assert learned.explains(call(6, at_s=2.0), 5, is_probe=False)
    assert learned.explains(call(5, at_s=2.0), 4, is_probe=False)
    assert not learned.explains(call(4, at_s=2.0), 3, is_probe=False)
    assert not learned.explains(call(6, at_s=2.0), 0, is_probe=False)
    assert not learned.explains(call(6, at_s=2.0), 5, is_probe=True)


def test_what_was_sent_before_the_last_refusal_is_explained_by_it() -> None:
    learned = refused(4, at_s=0.0, now_s=1.0)
    assert learned.explains(call(1, at_s=0.5), 0, is_probe=True)
    assert not learned.explains(call(1, at_s=1.0), 0, is_probe=True)


def test_of_refusals_of_one_burst_the_first_one_says_when_it_was() -> None:
    learned = refused(4, at_s=0.0, now_s=1.0)
    learned.refused(call(5, at_s=0.5), 3, 9.0)
    assert not learned.explains(call(1, at_s=2.0), 0, is_probe=True)
    assert not learned.has_room(2)  # but how many were accepted is known better
    assert learned.has_room(1)
    learned.refused(call(5, at_s=2.0), 3, 9.0)
    assert learned.explains(call(1, at_s=8.0), 0, is_probe=True)


def test_a_refusal_begins_the_count_of_accepted_calls_again() -> None:
    learned = refused(4)
    for _ in range(3000):
        learned.accepted()
    learned.refused(call(5, at_s=2.0), 4, 3.0)
    for _ in range(4):
        learned.accepted()
    learned.grow(call(4), calm_calls=100)
    learned.grow(call(4), calm_calls=100)
    assert not learned.has_room(4)
    assert math.isfinite(learned._most)
