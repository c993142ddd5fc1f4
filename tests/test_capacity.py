"""No tenant uses up a bounded resource."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.capacity import SharedCapacity
from proxy.errors import Overloaded
from proxy.tenant import Tenant

LIMIT = 1000
KNOWN = [Tenant(bytes([n])) for n in range(200)]
UNVERIFIED = [Tenant(bytes([n]), is_unverified=True) for n in range(200)]


def new() -> SharedCapacity:
    return SharedCapacity(LIMIT, "units", unverified_limit=LIMIT // 2)


def fill(capacity: SharedCapacity, tenant: Tenant, amount: int = 1) -> int:
    """Take for one request after the other until one is refused; returns how much that was."""
    taken = 0
    while True:
        try:
            capacity.take(tenant, (tenant, taken), amount)
        except Overloaded:
            return taken
        taken += amount


def test_one_tenant_gets_half_with_many_requests() -> None:
    capacity = new()
    assert fill(capacity, KNOWN[0]) == LIMIT // 2
    capacity.take(KNOWN[1], "other", LIMIT // 2)


def test_greedy_tenants_leave_as_much_free_as_each_of_them_uses() -> None:
    capacity = new()
    for _ in range(LIMIT):
        for tenant in KNOWN[:3]:
            try:
                capacity.take(tenant, object(), 1)
            except Overloaded:
                continue
    assert capacity.used == 3 * LIMIT // 4
    assert fill(capacity, KNOWN[3]) == LIMIT // 8


def test_one_request_may_use_all_that_is_free() -> None:
    capacity = new()
    for _ in range(10):
        capacity.take(KNOWN[0], "one", LIMIT // 10)
    with pytest.raises(Overloaded):
        capacity.take(KNOWN[0], "one", 1)
    capacity.give_back(KNOWN[0], "one", LIMIT)
    assert capacity.used == 0


def test_unverified_tenants_get_half_together() -> None:
    capacity = new()
    taken = sum(fill(capacity, tenant) for tenant in UNVERIFIED)
    assert taken <= LIMIT // 2
    assert fill(capacity, KNOWN[0]) >= LIMIT // 4
    # Those that are made up can't keep out the first of a client that is new, either.
    capacity = new()
    fill(capacity, UNVERIFIED[0])
    capacity.take(UNVERIFIED[1], "first", LIMIT // 8)


def test_the_first_request_of_a_new_client_may_be_larger_than_the_unverified_half() -> None:
    capacity = new()
    for _ in range(9):
        capacity.take(UNVERIFIED[0], "large", LIMIT // 10)
    with pytest.raises(Overloaded):
        capacity.take(UNVERIFIED[1], "other", 1)
    capacity.take(KNOWN[0], "known", LIMIT // 10)


def test_only_a_lone_request_may_exceed_the_limit() -> None:
    capacity = new()
    with pytest.raises(Overloaded):
        capacity.take(KNOWN[0], "large", LIMIT + 1)
    capacity.take(KNOWN[0], "large", LIMIT + 1, may_exceed=True)
    with pytest.raises(Overloaded):
        capacity.take(KNOWN[1], "other", 1, may_exceed=True)
    capacity.give_back(KNOWN[0], "large", LIMIT + 1)
    capacity.take(KNOWN[1], "other", 1)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2), st.integers(0, 400), st.booleans()), max_size=60
    )
)
def test_giving_back_undoes_taking(steps: list[tuple[int, bool, int, int, bool]]) -> None:
    capacity = new()
    taken: Counter[tuple[Tenant, int]] = Counter()
    for number, is_unverified, request, amount, gives_back in steps:
        tenant = Tenant(bytes([number]), is_unverified)
        if gives_back:
            less = min(amount, taken[tenant, request])
            capacity.give_back(tenant, request, less)
            taken[tenant, request] -= less
        else:
            try:
                capacity.take(tenant, request, amount)
            except Overloaded:
                continue
            taken[tenant, request] += amount
        assert capacity.used == sum(taken.values()) <= LIMIT
    for (tenant, request), amount in taken.items():
        capacity.give_back(tenant, request, amount)
    assert repr(capacity) == f"<SharedCapacity 0 of {LIMIT} units used by 0 tenants>"
    assert capacity._used_by_unverified == 0
