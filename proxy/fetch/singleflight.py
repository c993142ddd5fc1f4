"""Single-flight over many keys: while a key is being fetched, other requests for it wait for that fetch."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


class Flights(Generic[T]):
    """The keys that are being fetched.

    A flight ends with a result, never with an exception: a failure means different things to different waiters, and one
    exception object must not be raised in several tasks.
    """

    def __init__(self) -> None:
        self._flights: dict[bytes, asyncio.Future[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __repr__(self) -> str:
        return f"<Flights {len(self)} under way>"

    def detach(self, is_outdated: Callable[[bytes], bool]) -> None:
        """Stop further joins to the flights of outdated keys. They go on for the requests that have joined."""
        for key in [key for key in self._flights if is_outdated(key)]:
            del self._flights[key]

    def claim(self, keys: Collection[bytes], instead_of: Collection["asyncio.Future[T]"] = ()) -> "Claim[T]":
        """A new `Claim` on ``keys``, as by `claim_more`."""
        claim = Claim(self._flights)
        self.claim_more(claim, keys, instead_of)
        return claim

    def claim_more(
        self, claim: "Claim[T]", keys: Collection[bytes], instead_of: Collection["asyncio.Future[T]"] = ()
    ) -> None:
        """Join each key's flight. Start a new one if there is none, if it is done, or if it is in ``instead_of``. A
        flight that is done may still be listed, because its leader has not removed it yet.

        There is no await in here. A caller that looked into memory before, without an await since, can't miss a flight
        that has ended: its result went into memory before the flight was removed.
        """
        flights = self._flights
        new = asyncio.get_running_loop().create_future
        # All at once: one after the other, thousands would take twice as long.
        under_way = ((key, flights[key]) for key in keys if key in flights) if flights else ()
        joined = {key: flight for key, flight in under_way if not (flight.done() or flight in instead_of)}
        mine = {key: new() for key in keys if key not in joined}
        flights.update(mine)
        claim.mine.update(mine)
        claim.flights.update(joined | mine)


class Claim(Generic[T]):
    """One caller's part in the flights of some keys. It must settle each key in ``mine``."""

    __slots__ = ("_flights_of_all", "_has_given_up", "_left", "_waiter", "flights", "mine")

    def __init__(self, all_flights: dict[bytes, "asyncio.Future[T]"]) -> None:
        self._flights_of_all = all_flights
        self.mine: dict[bytes, asyncio.Future[T]] = {}  # to be settled by this caller
        self.flights: dict[bytes, asyncio.Future[T]] = {}  # of every key, mine among them
        self._waiter: asyncio.Future[None] | None = None
        self._has_given_up = False
        self._left: set[bytes] = set()

    @property
    def joined(self) -> list[bytes]:
        """The keys whose flights others lead."""
        return [key for key in self.flights if key not in self.mine]

    async def wait(self) -> bool:
        """Wait until all flights have ended, except those that it `leave`s, or `give_up` is called. Returns whether all
        have. If the waiting is cancelled, they go on.

        One after the other: those of one leader end together, so most have ended when the first has.
        """
        have_all_ended = True
        for key, flight in self.flights.items():
            while not (flight.done() or self._has_given_up or key in self._left):
                waiter = self._waiter = asyncio.get_running_loop().create_future()
                wake = partial(_wake, waiter)
                flight.add_done_callback(wake)
                try:
                    await waiter
                finally:
                    flight.remove_done_callback(wake)
            have_all_ended &= flight.done()
        return have_all_ended

    def give_up(self) -> None:
        """End `wait`, whatever has not ended."""
        self._has_given_up = True
        if self._waiter is not None:
            _wake(self._waiter, None)

    def leave(self, key: bytes) -> None:
        """Let `wait` not wait for the flight of ``key``, which another leads."""
        self._left.add(key)
        if self._waiter is not None:
            _wake(self._waiter, None)

    def settle(self, results: Mapping[bytes, T]) -> None:
        """End this caller's flights of some keys, where they have not ended: remove them, and wake their waiters.

        After that, a waiter that chose to retry may have claimed a key again. Its flight is not affected.
        """
        flights, mine = self._flights_of_all, self.mine
        for key, result in results.items():
            flight = mine[key]
            if flights.get(key) is flight:  # it may be detached or replaced
                del flights[key]
            if not flight.done():
                flight.set_result(result)

    def settle_rest(self, result: T) -> None:
        """End all of this caller's flights that have not ended."""
        self.settle(dict.fromkeys(self.mine, result))


def _wake(waiter: "asyncio.Future[None]", _: object) -> None:
    if not waiter.done():
        waiter.set_result(None)
