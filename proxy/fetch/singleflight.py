"""Single-flight over many keys: while one is being fetched, whoever else wants it waits for that fetch."""

import asyncio
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Flights(Generic[T]):
    """Which keys are being fetched.

    A flight ends with a result, never with an exception: what a failure means differs from waiter to waiter, and one
    exception object must not be raised in many tasks.
    """

    def __init__(self) -> None:
        self._flights: dict[bytes, asyncio.Future[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __repr__(self) -> str:
        return f"<Flights {len(self)} under way>"

    def claim(self, keys: Iterable[bytes]) -> "Claim[T]":
        """Join the flights of ``keys``, and lead those that there were none of until now.

        There is no await in here. A caller that looked into memory just before, without one either, can't miss a
        flight that ended in between: its result went into memory before the flight was forgotten.
        """
        claim = Claim(self._flights)
        new = asyncio.get_running_loop().create_future
        for key in keys:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = claim.mine[key] = new()
            claim.flights[key] = flight
        return claim


class Claim(Generic[T]):
    """One caller's part in the flights of some keys. Each key in ``mine`` must come to be settled."""

    __slots__ = ("_all", "flights", "mine")

    def __init__(self, all_flights: dict[bytes, "asyncio.Future[T]"]) -> None:
        self._all = all_flights
        self.mine: dict[bytes, asyncio.Future[T]] = {}  # to be settled by this caller
        self.flights: dict[bytes, asyncio.Future[T]] = {}  # of every key, mine among them

    def settle(self, key: bytes, result: T) -> None:
        """End my flight of ``key``, if it has not ended: forget it, and tell those who wait.

        Once it has ended the key may have been claimed anew, by a waiter that did not like the result; that flight
        is another's.
        """
        flight = self.mine[key]
        if not flight.done():
            del self._all[key]
            flight.set_result(result)
