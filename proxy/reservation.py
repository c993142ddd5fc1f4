"""Memory that a request has reserved (`--max-held`)."""

import asyncio
from typing import Any

from proxy import turns
from proxy.capacity import SharedCapacity
from proxy.tenant import Tenant


class MemoryReservation:
    """The memory that one request and its response use. It is released when the last of its users has ended."""

    __slots__ = ("_capacity", "_parts", "_users", "bytes", "tenant")

    def __init__(self, capacity: SharedCapacity, tenant: Tenant) -> None:
        self._capacity = capacity
        self._users = 1
        self._parts: list[Any] = []
        self.tenant = tenant
        self.bytes = 0

    def take(self, size: int, *, may_exceed: bool = False) -> None:
        """Raises `Overloaded` if there is no room; with ``may_exceed``, only if other requests use memory."""
        self._capacity.take(self.tenant, id(self), size, may_exceed=may_exceed)
        self.bytes += size

    def require(self, size: int) -> None:
        """Raises `Overloaded` if ``size`` can't be taken. Call it before joining a body: one that can't be parsed need
        not be joined."""
        self.take(size)
        self.give_back(size)

    def give_back(self, size: int) -> None:
        self._capacity.give_back(self.tenant, id(self), size)
        self.bytes -= size

    def keep(self, parts: list[Any]) -> None:
        """Free ``parts`` of the request in turns once its last user has ended."""
        self._parts = parts.copy()

    def lasts_until(self, work: "asyncio.Future[Any]") -> None:
        """Count ``work`` as one more user. It may outlive the request."""
        self._users += 1
        work.add_done_callback(lambda _: self.release())

    def release(self) -> None:
        """One of its users has ended. The first user is the request."""
        self._users -= 1
        if not self._users:
            self.give_back(self.bytes)
            if self._parts:
                turns.free(self._parts)
