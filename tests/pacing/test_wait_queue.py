"""The order of requests that wait: urgency, tenants' turns, and a share for those that waited long."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from proxy.pacing.wait_queue import Ticket, WaitQueue


def add(queue: WaitQueue[str], value: str, *, urgency: int = 3, tenant: bytes = b"t", items: int = 1) -> Ticket[str]:
    return queue.add(value, group=value[0], urgency=urgency, tenant=tenant, items=items, now_s=0.0)


def take(queue: WaitQueue[str], most: int = 1, now_s: float = 0.0) -> list[str]:
    room = itertools.chain([True] * most, itertools.repeat(False))
    return queue.take(now_s, lambda _: next(room))


def test_the_most_urgent_takes_the_head_of_a_call_and_its_group_follows() -> None:
    queue: WaitQueue[str] = WaitQueue()
    for value, urgency in (("a bulk", 4), ("b bulk", 4), ("a query", 3), ("a urgent", 0)):
        add(queue, value, urgency=urgency)
    assert take(queue, 9) == ["a urgent", "a query", "a bulk"]
    assert take(queue, 9) == ["b bulk"]
    assert not queue


def test_what_comes_back_has_its_old_place() -> None:
    queue: WaitQueue[str] = WaitQueue()
    tickets = {value: add(queue, value) for value in ("a1", "a2", "a3")}
    assert take(queue, 2) == ["a1", "a2"]
    add(queue, "a4")
    queue.add_again(tickets["a2"], group="a")
    queue.add_again(tickets["a1"], group="a")
    assert take(queue, 9) == ["a1", "a2", "a3", "a4"]
    queue.add_again(tickets["a1"], group="a")  # though nothing waited in between
    add(queue, "a5")
    assert take(queue, 9) == ["a1", "a5"]


def test_tenants_take_turns_by_their_items() -> None:
    queue: WaitQueue[str] = WaitQueue()
    for n in range(4):
        add(queue, f"a{n}", tenant=b"a", items=10)
    for n in range(4):
        add(queue, f"b{n}", tenant=b"b", items=20)
    assert [take(queue)[0] for _ in range(8)] == ["a0", "b0", "a1", "a2", "b1", "a3", "b2", "b3"]


def test_every_fourth_call_is_for_what_waited_long() -> None:
    queue: WaitQueue[str] = WaitQueue()
    add(queue, "old", urgency=7)
    for n in range(20):
        add(queue, f"new {n}", urgency=0, tenant=b"other")
    assert "old" not in [take(queue, now_s=9.9)[0] for _ in range(8)]
    assert "old" in [take(queue, now_s=10.0)[0] for _ in range(4)]


_values = st.tuples(st.integers(0, 7), st.sampled_from([b"a", b"b", b"c"]), st.integers(1, 40), st.integers(0, 3))


@given(st.lists(_values, min_size=1, max_size=60), st.data())
def test_every_value_leaves_once(values: list[tuple[int, bytes, int, int]], data: st.DataObject) -> None:
    queue: WaitQueue[str] = WaitQueue()
    tickets: dict[str, Ticket[str]] = {}
    left: set[str] = set()
    for number, (urgency, tenant, items, group) in enumerate(values):
        value = f"{group}/{number}"
        tickets[value] = add(queue, value, urgency=urgency, tenant=tenant, items=items)
        what = data.draw(st.sampled_from(["nothing", "take", "remove", "again"]))
        if what == "take":
            taken = take(queue, 3, now_s=20.0)
            assert len({one[0] for one in taken}) == 1
            assert left.isdisjoint(taken)
            left.update(taken)
        elif what == "remove":
            left.add(value)
            queue.remove(tickets[value])
        elif what == "again" and left:
            again = min(left)
            left.remove(again)
            tickets[again] = queue.add_again(tickets[again], group=tickets[again].group)
        assert len(queue) == len(tickets) - len(left)
        assert set(queue.values()) == tickets.keys() - left
    while taken := take(queue, 3, now_s=20.0):
        assert left.isdisjoint(taken)
        left.update(taken)
    assert left == tickets.keys()


@given(st.integers(0, 7), st.lists(st.tuples(st.sampled_from([b"x", b"y", b"z"]), st.integers(1, 40)), min_size=1))
def test_a_patient_request_is_not_starved_by_urgent_ones(urgency: int, others: list[tuple[bytes, int]]) -> None:
    """However many more urgent requests come all the time, from three other tenants."""
    queue: WaitQueue[str] = WaitQueue()
    for tenant, items in others:
        add(queue, "busy", urgency=0, tenant=tenant, items=items)
    add(queue, "patient", urgency=urgency, tenant=b"p")
    shared = 0  # calls until then, of those that are shared
    for call, (tenant, items) in enumerate(itertools.cycle(others)):
        add(queue, "busy", urgency=0, tenant=tenant, items=items)
        if take(queue, now_s=10.0) == ["patient"]:
            break
        shared += call % 4 == 3
    assert shared <= 3  # one for each other tenant


def test_what_has_left_takes_no_memory() -> None:
    queue: WaitQueue[str] = WaitQueue()
    add(queue, "a stays", urgency=0)
    for n in range(10_000):
        queue.remove(add(queue, f"a{n}", tenant=str(n).encode()))
    assert sum(len(heap.entries) for heap in (queue._by_urgency, queue._by_turn, *queue._groups.values())) < 1000
