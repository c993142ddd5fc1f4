"""The budget for further attempts while calls fail."""

import pytest

from proxy.fetch.retry_budget import RetryBudget


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
