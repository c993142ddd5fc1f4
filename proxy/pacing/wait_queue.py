"""The order in which the requests of one lane leave, while a rate limit makes them wait (pure).

The most urgent goes first. Among equals the tenants take turns, by start-time fair queueing (Goyal, Vin, Cheng 1996) of
their items, so that none has it all; of one tenant's requests the oldest goes first. Every fourth call begins with the
oldest request of the tenant whose turn it is, whatever its urgency, if it has waited for ten seconds. So however many
urgent requests come, and from whom, each tenant keeps its part of these calls.

Every operation takes logarithmic time: a ticket that is no longer valid stays in its heaps until it comes to their top,
or until it is one of too many.
"""

import heapq
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

T = TypeVar("T")

_SHARED_CALLS = 4  # one of so many
_PATIENT_S = 10.0
_MAX_INVALID = 64
_MIN_TENANTS = 64

_Key = tuple[float, float, int]  # urgency, turn, number


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket(Generic[T]):
    """The place of ``value``. Those with one ``group`` may leave together."""

    value: T
    group: Hashable
    by_urgency: _Key
    by_turn: _Key
    since_s: float
    is_valid: bool = True


class WaitQueue(Generic[T]):
    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._by_urgency: _Heap[T] = _Heap()
        self._by_turn: _Heap[T] = _Heap()
        self._groups: dict[Hashable, _Heap[T]] = {}
        self._turns: dict[float, _Turns] = {}
        self._shared_turns = _Turns()
        self._calls = 0

    def __len__(self) -> int:
        return self._by_turn.size

    def add(self, value: T, *, group: Hashable, urgency: int, tenant: bytes, items: int, now_s: float) -> Ticket[T]:
        number = next(self._numbers)
        turn = self._turns.setdefault(urgency, _Turns()).of(tenant, items)
        by_turn = (0, self._shared_turns.of(tenant, items), number)
        ticket = Ticket(value=value, group=group, by_urgency=(urgency, turn, number), by_turn=by_turn, since_s=now_s)
        self._add(ticket)
        return ticket

    def add_again(self, ticket: Ticket[T], *, group: Hashable) -> Ticket[T]:
        """To the place that it had."""
        number = next(self._numbers)
        by_urgency, by_turn = (*ticket.by_urgency[:2], number), (*ticket.by_turn[:2], number)
        again = replace(ticket, group=group, by_urgency=by_urgency, by_turn=by_turn, is_valid=True)
        self._add(again)
        return again

    def first(self, now_s: float) -> T | None:
        """The value that leaves next, by itself or with others of its group."""
        ticket = self._first(now_s)
        return None if ticket is None else ticket.value

    def take(self, now_s: float, fits: Callable[[T], bool]) -> list[T]:
        """The values of the next call: the first, and those of its group behind it, as long as each ``fits``."""
        ticket = self._first(now_s)
        taken: list[T] = []
        while ticket is not None and fits(ticket.value):
            taken.append(ticket.value)
            self._took(ticket)
            self.remove(ticket)
            heap = self._groups.get(ticket.group)
            ticket = None if heap is None else heap.first()
        self._calls += bool(taken)
        return taken

    def remove(self, ticket: Ticket[T]) -> None:
        ticket.is_valid = False
        heap = self._groups[ticket.group]
        for one in (self._by_urgency, self._by_turn, heap):
            one.removed()
        if not heap.size:
            del self._groups[ticket.group]
        if not self._by_turn.size:
            for turns in (self._shared_turns, *self._turns.values()):
                turns.end()

    def values(self) -> list[T]:
        return [ticket.value for _, ticket in self._by_turn.entries if ticket.is_valid]

    def _add(self, ticket: Ticket[T]) -> None:
        self._by_urgency.add(ticket.by_urgency, ticket)
        self._by_turn.add(ticket.by_turn, ticket)
        self._groups.setdefault(ticket.group, _Heap()).add(ticket.by_urgency, ticket)

    def _first(self, now_s: float) -> Ticket[T] | None:
        if self._calls % _SHARED_CALLS == _SHARED_CALLS - 1:
            ticket = self._by_turn.first()
            if ticket is not None and now_s - ticket.since_s >= _PATIENT_S:
                return ticket
        return self._by_urgency.first()

    def _took(self, ticket: Ticket[T]) -> None:
        urgency, turn, _ = ticket.by_urgency
        self._turns[urgency].took(turn)
        self._shared_turns.took(ticket.by_turn[1])


@dataclass(slots=True)
class _Heap(Generic[T]):
    """Tickets by a key. ``size`` is the number of valid ones."""

    size: int = 0
    entries: list[tuple[_Key, Ticket[T]]] = field(default_factory=list)

    def add(self, key: _Key, ticket: Ticket[T]) -> None:
        self.size += 1
        heapq.heappush(self.entries, (key, ticket))

    def first(self) -> Ticket[T] | None:
        while self.entries and not self.entries[0][1].is_valid:
            heapq.heappop(self.entries)
        return self.entries[0][1] if self.entries else None

    def removed(self) -> None:
        """A ticket is no longer valid."""
        self.size -= 1
        if len(self.entries) > 2 * self.size + _MAX_INVALID:
            self.entries = [entry for entry in self.entries if entry[1].is_valid]
            heapq.heapify(self.entries)


@dataclass(slots=True)
class _Turns:
    """When each tenant's next request begins, in items. A tenant that had nothing waiting begins now."""

    now: float = 0.0
    next: dict[bytes, float] = field(default_factory=dict)
    max_tenants: int = _MIN_TENANTS

    def of(self, tenant: bytes, items: int) -> float:
        turn = max(self.now, self.next.get(tenant, 0.0))
        self.next[tenant] = turn + items
        if len(self.next) > self.max_tenants:
            self.next = {name: at for name, at in self.next.items() if at > self.now}
            self.max_tenants = 2 * len(self.next) + _MIN_TENANTS
        return turn

    def took(self, turn: float) -> None:
        self.now = max(self.now, turn)

    def end(self) -> None:
        """Nothing waits. What comes back has its turn before all that is new."""
        self.now = max(self.next.values(), default=self.now)
        self.next.clear()
