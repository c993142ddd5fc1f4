"""A group counts the items that gather in it."""

from proxy.fetch.group import Group
from tests.fetch.test_waiting import waiting_for


async def test_what_is_taken_gathers_no_longer_and_may_be_put_back() -> None:
    group = Group(b"name", None)
    one, two = waiting_for("a"), waiting_for("b", "c")
    group.add(one)
    group.add(two)
    assert (group.waiting, group.items) == ([one, two], 3)
    taken = group.take()
    assert (taken, group.waiting, group.items) == ([one, two], [], 0)
    group.put_back(taken[1:])
    assert (group.take(), group.items) == ([two], 0)
    assert group.take() == []
