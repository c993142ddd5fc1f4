"""A limit that responses state: what is left between two of them, and when the next call may go."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.pacing.stated_quota import NEVER_S, StatedQuota
from proxy.protocol.rate_limits import Quota

AMOUNTS = st.floats(0, 1e6)
TIMES_S = st.floats(0, 1e6)


def stated(**fields: float) -> StatedQuota:
    """One as a response at time 0 stated it."""
    quota = StatedQuota()
    quota.state(Quota(**fields), 0, 0.0)
    return quota


def test_nothing_stated_is_no_limit() -> None:
    assert StatedQuota().ready_at_s(10**9, 5.0) == 5.0


def test_a_bucket_refills_until_its_reset() -> None:
    quota = stated(limit=60, remaining=0, reset_s=30.0)
    assert quota.per_s == 2
    assert quota.now(10.0) == 20
    assert quota.ready_at_s(1, 0.0) == 0.5
    assert quota.ready_at_s(60, 0.0) == 30.0
    assert quota.now(30.0) == quota.now(1000.0) == 60


def test_a_quota_without_reset_is_one_of_a_minute() -> None:
    quota = stated(limit=120, remaining=0)
    assert quota.per_s == 2
    assert quota.resets_at_s == NEVER_S
    assert quota.ready_at_s(60, 0.0) == 30.0


def test_a_reset_at_the_same_moment_as_before_is_that_of_a_window() -> None:
    """Nothing comes back before it, and then all does."""
    quota = stated(limit=60, remaining=0, reset_s=30.0)
    quota.state(Quota(limit=60, remaining=0, reset_s=20.0), 0, 10.04)
    assert quota.per_s == 0
    assert quota.ready_at_s(1, 11.0) == pytest.approx(30.04)
    assert quota.now(30.0) == 0
    assert quota.now(31.0) == 60


def test_a_reset_at_a_later_moment_than_before_is_that_of_a_bucket() -> None:
    quota = stated(limit=60, remaining=0, reset_s=30.0)
    quota.state(Quota(limit=60, remaining=0, reset_s=30.0), 0, 10.0)
    assert quota.per_s == 2


def test_statements_of_one_moment_do_not_tell_a_window_from_a_bucket() -> None:
    """Of a bucket too, the reset stays where it is while nothing is taken."""
    quota = stated(limit=60, remaining=0, reset_s=30.5)
    for n in range(5):
        quota.state(Quota(limit=60, remaining=0, reset_s=30.5), 0, n / 1000)
    assert not quota.is_window
    assert quota.per_s > 1.9


def test_a_window_is_known_though_each_statement_takes_one_call_of_it() -> None:
    quota = stated(limit=20, remaining=19, reset_s=1.9)
    for n in range(1, 10):
        quota.state(Quota(limit=20, remaining=19 - n, reset_s=1.9 - n / 1000), 0, n / 1000)
    assert quota.is_window


def test_a_reset_in_whole_seconds_may_be_off_by_one() -> None:
    quota = stated(limit=20, remaining=19, reset_s=10.0)
    quota.state(Quota(limit=20, remaining=12, reset_s=10.0), 0, 0.7)
    assert quota.is_window
    quota = stated(limit=20, remaining=19, reset_s=10.25)
    quota.state(Quota(limit=20, remaining=12, reset_s=10.25), 0, 0.7)
    assert not quota.is_window


def test_a_window_stays_one_in_the_next_window() -> None:
    quota = stated(limit=60, remaining=0, reset_s=30.0)
    quota.state(Quota(limit=60, remaining=0, reset_s=20.0), 0, 10.0)
    quota.state(Quota(limit=60, remaining=59, reset_s=30.0), 0, 30.0)
    assert quota.is_window
    quota.state(Quota(limit=60, remaining=49, reset_s=30.0), 0, 40.0)
    assert not quota.is_window  # another limit by now


def test_the_more_is_used_of_a_bucket_the_more_of_it_is_left_for_others() -> None:
    quota = stated(limit=60, remaining=0, reset_s=30.0)
    assert quota.cushion == 0
    cushions = []
    for n in range(20):
        quota.take(1, n / 2)
        cushions.append(quota.cushion)
    assert cushions == sorted(cushions)
    assert cushions[0] == 0.5
    assert cushions[-1] == 1.0  # half a second of the limit, at most
    quota.take(1, 100.0)
    assert quota.cushion == 0.5


def test_no_more_than_half_of_a_bucket_is_left_for_others() -> None:
    quota = stated(limit=2, remaining=0, reset_s=0.1)
    for n in range(100):
        quota.take(1, n / 20)
    assert quota.cushion == 1


def test_what_was_taken_in_an_ended_window_begins_the_next_one() -> None:
    quota = stated(limit=4, remaining=4, reset_s=10.0)
    quota.state(Quota(limit=4, remaining=0, reset_s=5.0), 0, 5.0)
    assert quota.per_s == 0
    quota.take(3, 12.0)
    assert quota.now(12.0) == 1
    assert quota.ready_at_s(2, 12.0) == 22.0  # a window is as long as the longest reset that was stated
    quota.take(1, 13.0)
    assert quota.resets_at_s == 22.0
    quota.take(1, 22.0)  # at the very moment
    assert (quota.level, quota.resets_at_s) == (3, 32.0)


def test_calls_in_flight_may_not_have_been_counted() -> None:
    quota = StatedQuota()
    quota.state(Quota(limit=10, remaining=5, reset_s=10.0), 3, 0.0)
    assert quota.now(0.0) == 2


def test_what_is_known_better_than_in_whole_numbers_counts() -> None:
    quota = stated(limit=60, remaining=10, reset_s=60.0)
    own = quota.now(0.5)
    quota.state(Quota(limit=60, remaining=10, reset_s=60.0), 0, 0.5)
    assert quota.level == own
    assert 10 < own < 11
    quota.state(Quota(limit=60, remaining=9, reset_s=60.0), 0, 0.5)
    assert quota.level == 9


def test_an_unknown_limit_is_at_least_what_remains_or_what_it_was() -> None:
    assert stated(remaining=7).limit == 7
    quota = stated(limit=50, remaining=7)
    quota.state(Quota(remaining=3), 0, 1.0)
    assert (quota.limit, quota.level) == (50, 3)


def test_nothing_left_of_an_unknown_limit_lasts_a_window() -> None:
    quota = stated(remaining=0)
    assert quota.per_s == 0
    assert quota.resets_at_s == quota.window_s == 1.0


def test_a_limit_alone_states_nothing_of_what_remains() -> None:
    quota = stated(limit=100, remaining=40, reset_s=60.0)
    quota.take(20, 0.0)
    quota.state(Quota(limit=100, reset_s=60.0), 0, 0.0)
    assert quota.level == 20


def test_a_reset_that_has_passed_is_none_to_wait_for() -> None:
    quota = stated(limit=10, remaining=0, reset_s=0.0)
    assert quota.per_s == 0
    assert quota.ready_at_s(1, 0.0) == 0.0


def test_what_is_larger_than_the_limit_goes_when_all_of_it_is_there() -> None:
    quota = stated(limit=10, remaining=0, reset_s=10.0)
    assert quota.ready_at_s(1000, 0.0) == quota.ready_at_s(10, 0.0) == 10.0


@given(limit=st.floats(1, 1e6), left=AMOUNTS, reset_s=st.floats(0, 1e4), cost=AMOUNTS, now_s=TIMES_S)
def test_when_it_is_ready_so_much_is_there(
    limit: float, left: float, reset_s: float, cost: float, now_s: float
) -> None:
    quota = stated(limit=limit, remaining=min(left, limit), reset_s=reset_s)
    ready_at_s = quota.ready_at_s(cost, now_s)
    assert now_s <= ready_at_s < math.inf
    assert quota.now(ready_at_s) >= min(cost, limit) * (1 - 1e-6) - 1e-5
    assert quota.now(ready_at_s) <= limit
