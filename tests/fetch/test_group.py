"""A group counts the items that gather in it, and the calls of each tenant."""

from msgspec.structs import replace

from proxy.fetch.group import CallLimits, Group
from proxy.fetch.waiting import Waiting
from proxy.tenant import Tenant
from tests.fetch.test_waiting import waiting_for

ANN, BOB, CAT = b"ann", b"bob", b"cat"


def group_of(in_all: int = 8, a_tenant: int = 4) -> Group:
    return Group(b"name", None, CallLimits(in_all, a_tenant))


def of(tenant_name: bytes, text: str, since_s: float) -> Waiting:
    waiting = waiting_for(text)
    waiting.request.client_request.reservation.tenant = Tenant(tenant_name)
    return replace(waiting, since_s=since_s)


async def test_what_is_taken_gathers_no_longer_and_may_be_put_back() -> None:
    group = group_of()
    one, two = waiting_for("a"), waiting_for("b", "c")
    group.add(one)
    group.add(two)
    assert group.items == 3
    taken = group.take_ready()
    assert (taken, group.waiting, group.items) == ([one, two], {}, 0)
    group.put_back(taken[1:])
    assert group.items == 2
    assert (group.take_ready(), group.items) == ([two], 0)
    assert group.take_ready() == []


async def test_requests_of_several_tenants_are_taken_in_the_order_in_which_they_came() -> None:
    group = group_of()
    requests = [of(tenant, f"{n}", n) for n, tenant in enumerate([ANN, BOB, ANN, CAT, BOB])]
    for request in requests:
        group.add(request)
    assert group.take_ready() == requests


async def test_what_waits_for_the_end_of_its_tenants_calls_is_not_taken() -> None:
    group = group_of(in_all=3, a_tenant=2)
    anns, bobs = of(ANN, "a", 1.0), of(BOB, "b", 2.0)
    for tenant in (ANN, ANN):
        group.call_began(tenant)
    group.add(anns)
    assert (group.is_full(ANN), group.is_full(BOB), group.has_ready) == (True, False, False)
    group.add(bobs)
    assert group.has_ready
    assert (group.take_ready(), group.items) == ([bobs], 1)
    group.call_began(BOB)
    assert (group.is_full(BOB), group.is_full(CAT), group.calls) == (True, True, 3)
    group.call_ended(ANN)
    assert (group.is_full(ANN), group.is_full(BOB)) == (False, False)
    assert group.take_ready() == [anns]
