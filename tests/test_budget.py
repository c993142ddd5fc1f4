"""No tenant uses up a bounded resource."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.budget import Budget, Tenant
from proxy.errors import Overloaded

LIMIT = 1000
KNOWN = [Tenant(bytes([n])) for n in range(200)]
UNVERIFIED = [Tenant(bytes([n]), is_unverified=True) for n in range(200)]


def new() -> Budget:
    return Budget(LIMIT, "units", unverified_limit=LIMIT // 2)


def fill(budget: Budget, tenant: Tenant, amount: int = 1) -> int:
    """Take for one request after the other until one is refused; returns how much that was."""
    taken = 0
    while True:
        try:
            budget.take(tenant, (tenant, taken), amount)
        except Overloaded:
            return taken
        taken += amount


def test_one_tenant_gets_half_with_many_requests() -> None:
    budget = new()
    assert fill(budget, KNOWN[0]) == LIMIT // 2
    budget.take(KNOWN[1], "other", LIMIT // 2)


def test_greedy_tenants_leave_as_much_free_as_each_of_them_uses() -> None:
    budget = new()
    for _ in range(LIMIT):
        for tenant in KNOWN[:3]:
            try:
                budget.take(tenant, object(), 1)
            except Overloaded:
                continue
    assert budget.used == 3 * LIMIT // 4
    assert fill(budget, KNOWN[3]) == LIMIT // 8


def test_one_request_may_use_all_that_is_free() -> None:
    budget = new()
    for _ in range(10):
        budget.take(KNOWN[0], "one", LIMIT // 10)
    with pytest.raises(Overloaded):
        budget.take(KNOWN[0], "one", 1)
    budget.give_back(KNOWN[0], "one", LIMIT)
    assert budget.used == 0


def test_unverified_tenants_get_half_together() -> None:
    budget = new()
    taken = sum(fill(budget, tenant) for tenant in UNVERIFIED)
    assert taken <= LIMIT // 2
    assert fill(budget, KNOWN[0]) >= LIMIT // 4
    # Those that are made up can't keep out the first of a client that is new, either.
    budget = new()
    fill(budget, UNVERIFIED[0])
    budget.take(UNVERIFIED[1], "first", LIMIT // 8)


def test_the_first_request_of_a_new_client_may_be_larger_than_the_unverified_half() -> None:
    budget = new()
    for _ in range(9):
        budget.take(UNVERIFIED[0], "large", LIMIT // 10)
    with pytest.raises(Overloaded):
        budget.take(UNVERIFIED[1], "other", 1)
    budget.take(KNOWN[0], "known", LIMIT // 10)


def test_only_a_lone_request_may_exceed_the_limit() -> None:
    budget = new()
    with pytest.raises(Overloaded):
        budget.take(KNOWN[0], "large", LIMIT + 1)
    budget.take(KNOWN[0], "large", LIMIT + 1, may_exceed=True)
    with pytest.raises(Overloaded):
        budget.take(KNOWN[1], "other", 1, may_exceed=True)
    budget.give_back(KNOWN[0], "large", LIMIT + 1)
    budget.take(KNOWN[1], "other", 1)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2), st.integers(0, 400), st.booleans()), max_size=60
    )
)
def test_giving_back_undoes_taking(steps: list[tuple[int, bool, int, int, bool]]) -> None:
    budget = new()
    taken: Counter[tuple[Tenant, int]] = Counter()
    for number, is_unverified, request, amount, gives_back in steps:
        tenant = Tenant(bytes([number]), is_unverified)
        if gives_back:
            less = min(amount, taken[tenant, request])
            budget.give_back(tenant, request, less)
            taken[tenant, request] -= less
        else:
            try:
                budget.take(tenant, request, amount)
            except Overloaded:
                continue
            taken[tenant, request] += amount
        assert budget.used == sum(taken.values()) <= LIMIT
    for (tenant, request), amount in taken.items():
        budget.give_back(tenant, request, amount)
    assert repr(budget) == f"<Budget 0 of {LIMIT} units used by 0 tenants>"
    assert budget._used_by_unverified == 0
