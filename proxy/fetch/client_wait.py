"""A client's wait for its fetch. While a rate limit holds what it waits for, the client's patience counts."""

import asyncio
from typing import Any

from proxy.fetch.request import ClientRequest
from proxy.fetch.singleflight import Claim


class ClientWait:
    """``held`` is what the client waits for that a rate limit holds now, ``given_up`` what it waited for in vain."""

    __slots__ = ("_timer", "claim", "client_request", "given_up", "held", "is_over", "left", "watcher")

    def __init__(self, client_request: ClientRequest, claim: Claim[Any]) -> None:
        self.client_request = client_request
        self.claim = claim
        self.held: dict[Any, None] = {}
        self.given_up: Any = None
        # Flights that another credential's limit holds: this client's own may take the call.
        self.left: dict[bytes, asyncio.Future[Any]] = {}
        self.is_over = False  # it has what it waits for, has given up, or has disconnected
        self.watcher: asyncio.Event | None = None  # set when a limit holds it
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, held: object, stated_at_s: float) -> None:
        """``held`` waits for a limit. The upstream stated that it takes the call from ``stated_at_s`` on, in event loop
        time. If the client's deadline is not later, it gives up now."""
        if self.is_over:
            return
        loop = asyncio.get_running_loop()
        now_s, until_s = loop.time(), self.client_request.limit_wait.deadline_s
        if not self.held:
            self.client_request.limit_wait.hold(now_s)
        self.held[held] = None
        if self.watcher is not None:
            self.watcher.set()
        if until_s <= max(now_s, stated_at_s):
            self._give_up(held)
        elif self._timer is None:
            self._timer = loop.call_at(until_s, self._give_up_first)

    def leave(self, key: bytes) -> None:
        """Wait no longer for what another credential's limit holds, but for everything else."""
        self.left[key] = self.claim.flights[key]
        self.claim.leave(key)

    def wants(self, key: bytes) -> bool:
        """Whether the client still waits for the flight of ``key``."""
        return not self.is_over and key not in self.left

    def release(self, held: object) -> None:
        if held in self.held:
            del self.held[held]
            if not self.held and not self.is_over:
                self._stop()

    def end(self) -> None:
        """The client waits no longer. `held` stays as it is."""
        if not self.is_over:
            self.is_over = True
            if self.held:
                self._stop()

    def _give_up_first(self) -> None:
        self._give_up(next(iter(self.held)))

    def _give_up(self, held: object) -> None:
        if not self.is_over:
            self.given_up = held
            self.end()
            self.claim.give_up()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.client_request.limit_wait.release(asyncio.get_running_loop().time())
