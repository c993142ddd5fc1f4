"""Which replica fetches a key, as far as the store can say."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from proxy.breaker import Breaker
from proxy.cache.store import Store
from proxy.errors import StoreError

# Long enough that one late renewal loses nothing, short enough that a replica's death delays no one for long.
_LEASE_S = 3.0


class Lease:
    """Keys that this replica alone fetches, as far as the others can tell. Who can't ask the store goes alone."""

    def __init__(self, store: Store, breakers: Mapping[str, Breaker], *, timeout_s: float) -> None:
        self._store = store
        self._breakers = breakers
        self._budget_s = timeout_s
        self._held: set[bytes] = set()
        self.is_real = False  # whether the store has had a say

    async def acquire(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of ``keys`` that are now ours to fetch, in their order."""
        if not keys or any(breaker.has_recent_failure for breaker in self._breakers.values()):
            return list(keys)
        try:
            async with asyncio.timeout(self._budget_s):
                granted = await self._store.lease_many(keys, ttl_s=_LEASE_S)
        except (StoreError, TimeoutError):
            return list(keys)
        self.is_real = True
        self._held |= granted
        return [key for key in keys if key in granted]

    async def renew(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_S / 3)
            await self._extend(_LEASE_S)

    async def release(self) -> None:
        await self._extend(0)

    async def _extend(self, ttl_s: float) -> None:
        if self._held:
            with suppress(StoreError, TimeoutError):  # it lapses by itself
                async with asyncio.timeout(self._budget_s):
                    await self._store.extend_many(self._held, ttl_s=ttl_s)
