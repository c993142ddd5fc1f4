"""The seam between the cache and whatever keeps its bytes."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

# Of whatever keeps the bytes: so many failures in a row, and it is left alone for so long.
MAX_FAILURES = 5
COOLDOWN_S = 1.0
NOTHING: Mapping[bytes, bytes] = MappingProxyType({})


class Store(Protocol):
    """Bytes under 32-byte keys, shared by every process that opens the same store.

    A store knows nothing of what the bytes mean and promises nothing: it may forget, and the cache checks what it
    gets back. Keys must determine their values up to the last bits, because the first value written stays.

    All methods raise `StoreError` for whatever goes wrong, with what they had found and stored until then, and may be
    cancelled at any await without harm to other calls.
    """

    # Whether values are dropped once the ``ttl_s`` that they were put with is over, by the store's own clock.
    expires: bool
    # Whether `lease_many` tells processes apart. If not, every process fetches what it misses.
    has_leases: bool

    async def get_many(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        """The values that are there, asked for no longer than ``timeout_s``. ``keys`` are distinct."""
        ...

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: float | None,
        overwrite: bool,
        spoilt: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]:
        """Store the values whose keys are free, or all of them with ``overwrite``.

        Returns the standing values of the keys that were taken, which are now to be served in place of the caller's.
        A key is taken if `get_many` would find a value under it, other than the one in ``spoilt``, which the caller has
        found there and which can't be served. ``ttl_s`` lets a store drop values by itself; None keeps them for as long
        as there is room.
        """
        ...

    async def lease_many(self, keys: Sequence[bytes], *, ttl_s: float) -> set[bytes]:
        """Those of ``keys`` that nobody else holds; they are now the caller's to fetch, for ``ttl_s``."""
        ...

    async def extend_many(self, keys: Collection[bytes], *, ttl_s: float) -> None:
        """Hold leased keys for ``ttl_s`` from now; 0 gives them up."""
        ...

    async def aclose(self) -> None: ...


class Unleased:
    """The part of `Store` that stores without leases share. They drop nothing by age."""

    expires = False
    has_leases = False

    async def lease_many(self, keys: Sequence[bytes], *, ttl_s: float) -> set[bytes]:
        return set(keys)

    async def extend_many(self, keys: Collection[bytes], *, ttl_s: float) -> None:
        return None


class NoStore(Unleased):
    """`memory:`, nothing behind the memory tier."""

    async def get_many(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        return {}

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: float | None,
        overwrite: bool,
        spoilt: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]:
        return {}

    async def aclose(self) -> None:
        return None
