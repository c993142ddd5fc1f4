"""Leases: which replica fetches a key, as far as the store can tell."""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Self

from proxy.breaker import Breaker
from proxy.cache.store import Store
from proxy.errors import StoreError
from proxy.tasks import TaskSet, log_to

_log = logging.getLogger(__name__)

# Long enough that one late renewal loses nothing, short enough that a replica's death delays no one for long.
_LEASE_S = 3.0


class Lease:
    """Keys that only this replica fetches, renewed until the block ends and then released.

    Without leases, or while the store fails, a replica fetches what it needs and others may fetch the same.
    """

    def __init__(self, store: Store, breakers: Mapping[str, Breaker], *, timeout_s: float) -> None:
        self._store = store
        self._breakers = breakers
        self._timeout_s = timeout_s
        self._keys: set[bytes] = set()
        self._renewals = TaskSet(log_to(_log, "the renewal of leases"))
        self.is_real = False  # whether the store has granted or refused leases

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._renewals.aclose()
        await self._extend(self._keys, 0)

    async def acquire(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of ``keys`` that this replica is to fetch, in their order."""
        if not keys or not self._store.has_leases:
            return list(keys)
        if any(breaker.has_recent_failure for breaker in self._breakers.values()):
            return list(keys)
        try:
            async with asyncio.timeout(self._timeout_s):
                granted = await self._store.lease_many(keys, ttl_s=_LEASE_S)
        except (StoreError, TimeoutError):
            return list(keys)
        self.is_real = True
        self._keys |= granted
        if not len(self._renewals):
            self._renewals.start(self._renew())
        return [key for key in keys if key in granted]

    async def release(self, keys: Collection[bytes]) -> None:
        """Let other replicas fetch ``keys``."""
        released = self._keys.intersection(keys)
        self._keys -= released
        await self._extend(released, 0)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_S / 3)
            await self._extend(self._keys, _LEASE_S)

    async def _extend(self, keys: Collection[bytes], ttl_s: float) -> None:
        if keys:
            with suppress(StoreError, TimeoutError):  # the lease expires by itself
                async with asyncio.timeout(self._timeout_s):
                    await self._store.extend_many(keys, ttl_s=ttl_s)
