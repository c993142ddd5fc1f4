"""How many items a call may have, as refusals teach it."""

import math

from hypothesis import given
from hypothesis import strategies as st

from proxy.pacing.learned_size import LearnedSize


def refuse(size: LearnedSize, items: int, times: int = 1, *, is_alone: bool = False, at_s: float = 0.0) -> None:
    """Calls that were sent one after another, each after the refusal of the last."""
    for number in range(times):
        now_s = at_s + number
        size.refused(items, at_s=now_s, now_s=now_s + 0.5, is_alone=is_alone)


def learned(largest: int, refused: int) -> LearnedSize:
    size = LearnedSize()
    size.accepted(largest)
    refuse(size, refused, 3)
    return size


def test_nothing_refused_is_no_limit() -> None:
    size = LearnedSize()
    size.accepted(10_000)
    assert (size.largest, size.max_items, size.max_merged) == (10_000, math.inf, math.inf)


def test_three_refusals_in_a_row_of_larger_calls_are_about_their_size() -> None:
    size = LearnedSize()
    size.accepted(10)
    refuse(size, 64, 2)
    assert size.max_items == math.inf
    refuse(size, 64, at_s=2.0)
    assert size.max_items == 32


def test_the_limit_is_no_lower_than_what_was_accepted() -> None:
    assert learned(50, 64).max_items == 50
    assert learned(10, 64).max_items == 32


def test_after_that_it_takes_three_refusals_again() -> None:
    size = learned(10, 64)
    refuse(size, 30, 2, at_s=10.0)
    assert size.max_items == 32
    refuse(size, 30, at_s=20.0)
    assert size.max_items == 15


def test_refusals_of_one_burst_are_one() -> None:
    size = LearnedSize()
    size.accepted(10)
    for _ in range(5):
        size.refused(64, at_s=0.0, now_s=1.0, is_alone=False)
    assert size.max_items == math.inf


def test_a_larger_call_that_is_accepted_ends_the_row() -> None:
    size = LearnedSize()
    size.accepted(10)
    refuse(size, 64, 2)
    size.accepted(11)
    refuse(size, 64, 2, at_s=5.0)
    assert size.max_items == math.inf
    size.accepted(11)  # no larger
    refuse(size, 64, at_s=9.0)
    assert size.max_items == 32


def test_refusals_of_calls_that_are_no_larger_say_nothing_of_size() -> None:
    size = LearnedSize()
    size.accepted(64)
    refuse(size, 64, 9)
    assert (size.max_items, size.max_merged) == (math.inf, math.inf)


def test_a_call_that_is_refused_alone_is_halved_at_once() -> None:
    size = LearnedSize()
    size.accepted(64)
    refuse(size, 64, is_alone=True)
    assert size.max_items == 32
    refuse(size, 1, is_alone=True)
    assert size.max_items == 32


def test_before_anything_was_accepted_the_limit_is_a_guess_that_doubles_with_each_full_call() -> None:
    size = LearnedSize()
    refuse(size, 64, is_alone=True)
    assert size.max_items == 32
    size.accepted(31)
    assert size.max_items == 32
    size.accepted(32)
    size.accepted(64)
    assert size.max_items == 128
    refuse(size, 128)  # one refusal ends a guess
    assert size.max_items == 64
    for _ in range(3):
        size.accepted(64)
    assert size.max_items == 64


def test_a_limit_that_held_is_tried_again_after_four_full_calls_and_then_ever_later() -> None:
    size = learned(10, 64)
    for calls in (4, 8, 16):
        for _ in range(calls - 1):
            size.accepted(32)
        assert size.max_items == 32
        size.accepted(32)
        assert size.max_items == 64
        refuse(size, 64, 3, at_s=calls * 100.0)
        assert size.max_items == 32


def test_the_calls_before_it_is_tried_again_are_bounded() -> None:
    size = learned(10, 64)
    for round_ in range(12):
        while size.max_items == 32:
            size.accepted(32)
        refuse(size, 64, 3, at_s=(1 + round_) * 100.0)
    calls = 0
    while size.max_items == 32:
        size.accepted(32)
        calls += 1
    assert calls == 1024


def test_after_a_refusal_little_is_merged_and_then_more_with_each_call_that_uses_it() -> None:
    size = LearnedSize()
    size.accepted(2)
    refuse(size, 64)
    assert size.max_merged == 4
    size.accepted(1)
    assert size.max_merged == 4
    size.accepted(2)
    assert size.max_merged == 4 * 1.1
    size.accepted(2)  # less than half
    assert size.max_merged == 4 * 1.1
    size.max_merged = 40.0
    size.accepted(20)
    assert size.max_merged == 40 * 1.02


def test_what_was_accepted_may_be_merged_after_a_refusal() -> None:
    size = LearnedSize()
    size.accepted(20)
    refuse(size, 64)
    assert size.max_merged == 20


CALLS = st.lists(st.tuples(st.integers(1, 5000), st.booleans(), st.booleans()), max_size=40)


@given(CALLS)
def test_some_item_may_always_be_sent(calls: list[tuple[int, bool, bool]]) -> None:
    size = LearnedSize()
    for number, (items, is_accepted, is_alone) in enumerate(calls):
        if is_accepted:
            size.accepted(items)
        else:
            refuse(size, items, is_alone=is_alone, at_s=float(number))
        assert size.max_items >= 1
        assert size.max_merged >= 4
