"""The bulkhead: how many calls one upstream, and one tenant at it, may have under way."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from proxy.errors import Overloaded
from proxy.upstream.router import Origin


@dataclass(slots=True)
class _Tenant:
    """One tenant's calls to one upstream."""

    slots: asyncio.Semaphore
    calls: int = 0  # that have a slot or wait for one


class Slots:
    def __init__(
        self,
        concurrency: int,
        *,
        timeout_s: float,
        waited_s: Callable[[float], object],
        room: Callable[[], Awaitable[None]],
    ) -> None:
        """``concurrency`` calls to one origin at a time. A call waits at most ``timeout_s`` for its slot; ``waited_s``
        receives the time waited. With its slot, it waits for ``room``: for memory that can hold its response."""
        self._waited_s = waited_s
        self._room = room
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        # A tenant whose calls hang must not have all the slots.
        self.max_calls_a_tenant = max(1, concurrency // 2)
        self._slots: dict[Origin, asyncio.Semaphore] = {}
        self._tenants: dict[tuple[Origin, bytes], _Tenant] = {}

    @asynccontextmanager
    async def slot(self, origin: Origin, tenant_name: bytes) -> AsyncIterator[None]:
        """Hold a slot for one call of a tenant to ``origin``. Raises `Overloaded`."""
        name = origin, tenant_name
        all_slots = self._slots.get(origin)
        if all_slots is None:
            all_slots = self._slots[origin] = asyncio.Semaphore(self._concurrency)
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = _Tenant(asyncio.Semaphore(self.max_calls_a_tenant))
        tenant.calls += 1
        taken: list[asyncio.Semaphore] = []
        try:
            await self._take(tenant.slots, all_slots, taken)
            yield
        finally:
            for slots in reversed(taken):
                slots.release()
            tenant.calls -= 1
            if not tenant.calls:
                del self._tenants[name]

    async def _take(self, own: asyncio.Semaphore, of_all: asyncio.Semaphore, taken: list[asyncio.Semaphore]) -> None:
        """Take a slot of each, and note it in ``taken``. Raises `Overloaded`."""
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                for slots in (own, of_all):
                    await slots.acquire()
                    taken.append(slots)
                await self._room()
        except TimeoutError:
            raise Overloaded("Too many calls wait for the upstream.") from None
        finally:
            self._waited_s(time.perf_counter() - began_s)
