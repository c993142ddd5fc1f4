"""How much is merged after merged calls have failed."""

import pytest

from proxy.fetch.merge_limits import MergeLimits


@pytest.fixture
def now_s() -> list[float]:
    return [0.0]


@pytest.fixture
def limits(now_s: list[float]) -> MergeLimits:
    return MergeLimits(lambda: now_s[0])


def test_half_as_many_items_are_merged_each_time_down_to_one(limits: MergeLimits) -> None:
    seen = []
    for _ in range(4):
        limits.merging_failed("upstream", "m", limits.items("upstream", "m", 6), is_certain=True)
        seen.append(limits.items("upstream", "m", 6))
    assert seen == [3, 1, 1, 1]


def test_a_limit_is_of_one_model_of_one_upstream(limits: MergeLimits) -> None:
    limits.merging_failed("upstream", "m", 8, is_certain=True)
    assert (
        limits.items("upstream", "other", 8) == limits.items("other", "m", 8) == limits.items("upstream", None, 8) == 8
    )


def test_a_limit_is_forgotten_after_ten_minutes(limits: MergeLimits, now_s: list[float]) -> None:
    limits.merging_failed("upstream", "m", 8, is_certain=True)
    now_s[0] = 599.0
    assert limits.items("upstream", "m", 8) == 4
    now_s[0] = 600.0
    assert limits.items("upstream", "m", 8) == 8


def test_what_may_be_chance_takes_two_in_a_row(limits: MergeLimits) -> None:
    limits.merging_failed("upstream", "m", 8, is_certain=False)
    limits.merging_worked("upstream", "m")
    limits.merging_failed("upstream", "m", 8, is_certain=False)
    assert limits.items("upstream", "m", 8) == 8
    limits.merging_failed("upstream", "m", 8, is_certain=False)
    assert limits.items("upstream", "m", 8) == 4
