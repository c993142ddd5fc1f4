"""The keys of requests that wait for a rate limit, and the requests of other clients that wait for the same fetches."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from proxy.fetch.request import ClientRequest
from proxy.fetch.singleflight import Claim
from proxy.fetch.waiting import Waiting


class _Follower:
    """A request that waits for fetches of other requests. While one of them is held, so is the follower: its own
    patience counts, and its own time."""

    def __init__(self, client_request: ClientRequest, timeout: asyncio.Timeout) -> None:
        self._client_request = client_request
        self._timeout = timeout
        self._held = 0

    def hold(self, now_s: float) -> None:
        self._held += 1
        self._client_request.hold(now_s)
        if not self._timeout.expired():
            self._timeout.reschedule(self._client_request.held_until_s)

    def release(self, now_s: float) -> None:
        self._held -= 1
        self._client_request.release(now_s)
        if not self._held and not self._timeout.expired():
            self._timeout.reschedule(None)


class HeldKeys:
    def __init__(self) -> None:
        self._held: dict[bytes, Waiting] = {}
        self._followers: dict[bytes, list[_Follower]] = {}

    def __repr__(self) -> str:
        return f"<HeldKeys {len(self._held)} held, {len(self._followers)} followed>"

    def hold(self, waiting: Waiting, now_s: float) -> None:
        waiting.request.client_request.hold(now_s)
        if waiting.request.policy.may_join:
            for key in waiting.request.keys:
                self._held[key] = waiting
                for follower in self._followers.get(key, ()):
                    follower.hold(now_s)

    def release(self, waiting: Waiting, now_s: float) -> None:
        waiting.request.client_request.release(now_s)
        for key in waiting.request.keys:
            if self._held.get(key) is waiting:
                del self._held[key]
                for follower in self._followers.get(key, ()):
                    follower.release(now_s)

    async def wait(self, client_request: ClientRequest, claim: Claim[Any]) -> Waiting | None:
        """Wait for the flights of ``claim``.

        Returns what is still held when the patience of this request's client ends, if anything is.
        """
        joined = claim.joined
        try:
            async with asyncio.timeout(None) as timeout:
                with self._following(_Follower(client_request, timeout), joined):
                    await claim.wait()
        except TimeoutError:
            return next((self._held[key] for key in joined if key in self._held), None)
        return None

    @contextmanager
    def _following(self, follower: _Follower, keys: Collection[bytes]) -> Iterator[None]:
        clock = asyncio.get_running_loop().time
        for key in keys:
            self._followers.setdefault(key, []).append(follower)
            if key in self._held:
                follower.hold(clock())
        try:
            yield
        finally:
            for key in keys:
                followers = self._followers[key]
                followers.remove(follower)
                if not followers:
                    del self._followers[key]
                if key in self._held:
                    follower.release(clock())
