"""Who waits for what a rate limit holds: the client that began a fetch, and those that joined it."""

import asyncio
from collections.abc import Iterator
from typing import Any

from proxy.fetch.client_wait import ClientWait
from proxy.fetch.waiting import Waiting

_Flight = asyncio.Future[Any]  # of one key. Of two flights of one key each has followers of its own.


class HeldKeys:
    def __init__(self) -> None:
        self._held: dict[_Flight, Waiting] = {}
        self._followers: dict[_Flight, list[ClientWait]] = {}

    def __repr__(self) -> str:
        return f"<HeldKeys {len(self._held)} held, {len(self._followers)} followed>"

    def hold(self, waiting: Waiting, stated_at_s: float) -> None:
        """``waiting`` is held, for all that wait for it, until it is released."""
        for key in waiting.request.keys:
            flight = waiting.wait.claim.mine[key]
            self._held[flight] = waiting
            for follower in self._followers.get(flight, ()):
                _hold(follower, key, waiting, stated_at_s)
        waiting.wait.hold(waiting, stated_at_s)

    def release(self, waiting: Waiting) -> None:
        for flight in _flights(waiting):
            self._held.pop(flight, None)
        for wait in self._waits(waiting):
            wait.release(waiting)

    def follow(self, wait: ClientWait) -> None:
        """A client joined flights of others. Nothing was refused to it yet, so it waits also for what is held."""
        for key in wait.claim.joined:
            flight = wait.claim.flights[key]
            self._followers.setdefault(flight, []).append(wait)
            if flight in self._held:
                _hold(wait, key, self._held[flight], 0.0)

    def unfollow(self, wait: ClientWait) -> None:
        for key in wait.claim.joined:
            flight = wait.claim.flights[key]
            followers = self._followers[flight]
            followers.remove(wait)
            if not followers:
                del self._followers[flight]

    def is_wanted(self, waiting: Waiting) -> bool:
        """Whether its own client still waits, or other clients wait for each of its items. If they wait for only some,
        it is dropped and they fetch those themselves: nothing is sent only for a client that has left."""
        if waiting.outcome.done():
            return False
        mine = waiting.wait.claim.mine
        return not waiting.wait.is_over or all(
            any(follower.wants(key) for follower in self._followers.get(mine[key], ())) for key in waiting.request.keys
        )

    def _waits(self, waiting: Waiting) -> Iterator[ClientWait]:
        """Each client that waits for it, some of them perhaps several times."""
        yield waiting.wait
        if self._followers:
            for flight in _flights(waiting):
                yield from self._followers.get(flight, ())


def _hold(follower: ClientWait, key: bytes, waiting: Waiting, stated_at_s: float) -> None:
    if follower.client_request.lane_name == waiting.request.client_request.lane_name:
        follower.hold(waiting, stated_at_s)
    else:
        follower.leave(key)


def _flights(waiting: Waiting) -> Iterator[_Flight]:
    mine = waiting.wait.claim.mine
    return (mine[key] for key in waiting.request.keys)
