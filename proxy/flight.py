"""Single-flight over many keys: while one is being fetched, whoever else wants it waits for that fetch."""

import asyncio
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Flights(Generic[T]):
    """Which keys are being fetched. Whoever is told by `claim` that keys are his must `settle` each of them.

    A flight ends with a result, never with an exception: what a failure means differs from waiter to waiter, and one
    exception object must not be raised in many tasks.
    """

    def __init__(self) -> None:
        self._flights: dict[bytes, asyncio.Future[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __repr__(self) -> str:
        return f"<Flights {len(self)} under way>"

    def claim(self, keys: Iterable[bytes]) -> tuple[list[bytes], dict[bytes, "asyncio.Future[T]"]]:
        """``(mine, flights)``: the keys that nobody fetched until now, and the flight of every key.

        There is no await in here. A caller that looked into memory just before, without one either, can't miss a
        flight that ended in between: its result went into memory before the flight was forgotten.
        """
        loop = asyncio.get_running_loop()
        mine = []
        flights = {}
        for key in keys:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = loop.create_future()
                mine.append(key)
            flights[key] = flight
        return mine, flights

    def settle(self, key: bytes, result: T) -> None:
        """End the flight of ``key``, if it has not ended: tell those who wait, and forget it."""
        flight = self._flights.pop(key, None)
        if flight is not None:
            flight.set_result(result)
