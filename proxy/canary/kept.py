"""What the canary keeps in the store, under keys of its own: the reference, the state of each model, the epochs.

Each value is written as a record, with its bytes in place of a vector, so that it is checked and authenticated like an
entry. Without a store, values are kept in memory and end with the process.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from proxy.cache.store import NOTHING, NoStore, Store
from proxy.protocol import records
from proxy.protocol.records import InvalidRecord, Record, RecordKey
from proxy.protocol.vectors import DType, Vector

_READ_TIMEOUT_S = 2.0
# Longer than a check takes. If a process ends during its check, the next check waits this long, once.
_TURN_S = 600.0


class Kept(NamedTuple):
    """A stored value; its ``content`` is None if it is absent or invalid. ``stored`` is what the store has."""

    content: bytes | None = None
    stored: bytes | None = None
    stored_at_s: int = 0


class KeptValues:
    """All methods raise `StoreError`."""

    def __init__(self, store: Store, *, record_key: RecordKey | None, clock: Callable[[], float]) -> None:
        self._store = store
        self._record_key = record_key
        self._clock = clock
        self._local: dict[bytes, bytes] | None = {} if isinstance(store, NoStore) else None

    @property
    def is_local(self) -> bool:
        """Whether values are in memory only: other processes don't see them, and a restart loses them."""
        return self._local is not None

    async def read(self, key: bytes) -> Kept:
        if self._local is not None:
            stored = self._local.get(key)
        else:
            stored = (await self._store.get_many([key], timeout_s=_READ_TIMEOUT_S)).get(key)
        return self._opened(key, stored)

    async def put_first(self, key: bytes, content: bytes) -> bytes:
        """Store ``content`` unless there is a valid value. Returns the value that is stored then."""
        found = await self.read(key)
        if found.content is None and await self.swap(key, content, found):
            return content
        return found.content or (await self.read(key)).content or content

    async def put(self, key: bytes, content: bytes) -> None:
        """Store ``content``, and replace any value."""
        stored = self._sealed(key, content)
        if self._local is not None:
            self._local[key] = stored
        else:
            await self._store.put_many({key: stored}, ttl_s=None, overwrite=True)

    async def swap(self, key: bytes, content: bytes, found: Kept) -> bool:
        """Store ``content`` if the store still has what was ``found``. Returns whether it did."""
        invalid = NOTHING if found.stored is None else {key: found.stored}
        values = {key: self._sealed(key, content)}
        if self._local is not None:
            self._local |= values
            return True
        return not await self._store.put_many(values, ttl_s=None, overwrite=False, invalid=invalid)

    async def take_turn(self, key: bytes, token: bytes, interval_s: float) -> bool:
        """Whether this process, and for a while no other, may do the work that ``key`` names. ``token`` must be new."""
        turn_s = min(_TURN_S, interval_s / 2)
        if self._store.has_leases:
            return bool(await self._store.lease_many([key], ttl_s=turn_s))
        found = await self.read(key)
        is_taken = found.content is not None and 0 <= self._clock() - found.stored_at_s < turn_s
        return not is_taken and await self.swap(key, token, found)

    def _sealed(self, key: bytes, content: bytes) -> bytes:
        record = Record(
            vector=Vector(DType.UINT8, content),
            model=records.OWN,
            tokens=0,
            tokens_exact=True,
            stored_at_s=math.floor(self._clock()),
        )
        return records.encode(key, record, self._record_key)

    def _opened(self, key: bytes, stored: bytes | None) -> Kept:
        if stored is None:
            return Kept()
        try:
            record = records.decode(key, stored, self._record_key)
        except InvalidRecord:
            return Kept(None, stored)
        return Kept(record.vector.payload, stored, record.stored_at_s)
