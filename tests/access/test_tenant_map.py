"""The map is bounded in bytes, and no tenant displaces another's entries."""

import tracemalloc
from sys import getsizeof

from hypothesis import given
from hypothesis import strategies as st

from proxy.access.tenant_map import TenantMap

LIMIT = 100_000


def new() -> TenantMap[str]:
    return TenantMap(LIMIT, weigh=getsizeof)


def test_a_tenants_oldest_entries_are_evicted_by_its_new_ones() -> None:
    known = new()
    known.put(b"other", b"name", "place", 1.0)
    for number in range(1000):
        known.put(b"greedy", b"%d" % number, "place", float(number))
    assert known.get(b"other", b"name", "place") == 1.0
    assert known.get(b"greedy", b"999", "place") == 999.0
    assert known.get(b"greedy", b"1", "place") is None
    assert known.weight_bytes < LIMIT // 8


def test_the_oldest_tenant_is_evicted() -> None:
    known = new()
    for number in range(1000):
        known.put(b"%d" % number, b"name", "place", 1.0)
        known.put(b"steady", b"name", "place", float(number))
    assert known.weight_bytes <= LIMIT
    assert b"0" not in known
    assert b"999" in known
    assert known.get(b"steady", b"name", "place") == 999.0


def test_clearing_the_last_credential_removes_the_tenant() -> None:
    known = new()
    for place in "abc":
        known.put(b"tenant", b"first", place, 1.0)
    known.put(b"tenant", b"second", "a", 1.0)
    known.clear(b"tenant", b"first")
    assert [known.get(b"tenant", b"first", place) for place in "abc"] == [None] * 3
    assert known.get(b"tenant", b"second", "a") == 1.0
    known.clear(b"tenant", b"second")
    assert b"tenant" not in known
    assert known.weight_bytes == 0
    known.add(b"tenant")
    assert b"tenant" in known


@given(st.lists(st.tuples(st.sampled_from(["put", "remove", "clear", "add"]), *[st.integers(0, 3)] * 3), max_size=50))
def test_the_weight_is_that_of_the_entries(steps: list[tuple[str, int, int, int]]) -> None:
    known = new()
    for step, tenant, name, place in steps:
        names = bytes([tenant]), bytes([name])
        match step:
            case "put":
                known.put(*names, "x" * place, 1.0)
            case "remove":
                known.remove(*names, "x" * place)
            case "clear":
                known.clear(*names)
            case "add":
                known.add(names[0])
    empty = new()
    for tenant_name, its in known._tenants.items():
        empty.add(tenant_name)
        for one, where in its.numbers:
            empty.put(tenant_name, one, where, 1.0)
    assert known.weight_bytes == empty.weight_bytes


def test_it_takes_no_more_memory_than_its_weight() -> None:
    known: TenantMap[str] = TenantMap(10**9, weigh=getsizeof)
    tracemalloc.start()
    try:
        for number in range(2000):
            known.put(number.to_bytes(16), number.to_bytes(32), f"place {number}", 1.0 + number)
            known.put(bytes(16), number.to_bytes(32), f"place {number}", 1.0 + number)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= known.weight_bytes
