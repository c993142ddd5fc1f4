"""What failed merges teach: the budget for further attempts, and how much is merged."""

import pytest

from proxy.fetch.isolation import MergeLimits, RetryBudget

# --- the budget


@pytest.mark.parametrize("requests", [40, 100, 1000])
def test_attempts_that_merging_did_not_save_are_a_tenth_at_most(requests: int) -> None:
    budget, extra = RetryBudget(), 0
    for _ in range(requests):
        budget.requested()
        if budget.calls():
            budget.spend(1)
            extra += 1
    assert 0 < extra <= 0.1 * requests


def test_attempts_that_merging_saved_are_free_but_bounded() -> None:
    budget = RetryBudget()
    assert (budget.calls(), budget.calls(1), budget.calls(5), budget.calls(1000)) == (2, 3, 7, 16)
    budget.spend(5, saved=5)
    assert (budget.calls(), budget.calls(1000)) == (2, 11)
    budget.spend(6, saved=5)
    assert (budget.calls(), budget.calls(1000)) == (1, 5)


def test_a_success_restores_the_budget() -> None:
    budget = RetryBudget()
    budget.spend(100)
    assert budget.calls(1000) == 0
    budget.succeeded()
    assert (budget.calls(), budget.calls(1000)) == (2, 16)


# --- the limits


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
