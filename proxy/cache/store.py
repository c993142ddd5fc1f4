"""The protocol of a store, which keeps the cache's bytes."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

# Of the circuit breakers of a store and its nodes.
MAX_FAILURES = 5
COOLDOWN_S = 1.0
NOTHING: Mapping[bytes, bytes] = MappingProxyType({})


# How long a store keeps values: all of them, or each by its key. With None, as long as there is room.
TTL = float | Mapping[bytes, float] | None


class Page(NamedTuple):
    """A part of all values."""

    values: Mapping[bytes, bytes]
    cursor: bytes | None  # where the next part begins; None after the last one


class RecordInfo(Protocol):
    """What a purge selects records by."""

    @property
    def model(self) -> str: ...  # as the upstream's response named it

    @property
    def scope(self) -> bytes: ...  # its fingerprint

    @property
    def stored_at_s(self) -> int: ...  # Unix time


class PurgedModels(NamedTuple):
    """The entries of the models that match a pattern; of these, the ones that meet all further conditions."""

    pattern: str
    scope: bytes | None = None  # a fingerprint
    stored_before_s: float | None = None  # Unix time

    @property
    def has_conditions(self) -> bool:
        return self.scope is not None or self.stored_before_s is not None

    def covers(self, record: RecordInfo) -> bool:
        return (
            fnmatchcase(record.model, self.pattern)
            and self.scope in (None, record.scope)
            and (self.stored_before_s is None or record.stored_at_s < self.stored_before_s)
        )


class Purge(NamedTuple):
    """The keys and models that an operator removes from the store, whatever their values are by then. An upstream's
    response that was asked for before the purge must not bring them back."""

    keys: AbstractSet[bytes] = frozenset()
    models: AbstractSet[PurgedModels] = frozenset()

    def covers(self, key: bytes, record: RecordInfo) -> bool:
        return key in self.keys or any(models.covers(record) for models in self.models)


class Changes(NamedTuple):
    """A part of the store's log of replaced and removed values."""

    keys: Collection[bytes] = ()  # whose values were replaced or removed
    is_complete: bool = True  # if not, the values of any other keys may have been replaced too
    has_more: bool = False  # whether the next part is there already
    purge: Purge = Purge()


class Store(Protocol):
    """Bytes under 32-byte keys, shared by every process that opens the same store.

    A store does not interpret the bytes and guarantees nothing: it may lose values, and the cache checks the values
    that it reads. A key must determine its value up to the last bits, because the first value written stays.

    All methods raise `StoreError` for any failure, with the values found and stored until then. They may be cancelled
    at any await without harm to other calls.
    """

    # Whether the store drops values once the ``ttl_s`` that they were put with has passed, by its own clock.
    expires: bool
    # Whether `lease_many` tells processes apart. If not, every process fetches what it misses.
    has_leases: bool
    # How many reads of one of its `parts` it works on at once. Further ones would wait.
    max_reads: int

    def parts(self, keys: Sequence[bytes]) -> Mapping[Hashable, Sequence[bytes]]:
        """``keys`` by the part of the store that has them, such as a server, which may fail or hang by itself."""
        ...

    async def get_many(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        """The values of ``keys`` that have one, within ``timeout_s``. ``keys`` are distinct."""
        ...

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: TTL,
        overwrite: bool,
        invalid: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]:
        """Store the values whose keys are free, or all of them with ``overwrite``.

        Returns the existing values of the keys that were taken. They are to be served in place of the caller's.
        A key is taken if `get_many` would find a value under it other than the one in ``invalid``, which the caller has
        read there and which can't be served. ``ttl_s`` lets a store drop values by itself; with None it keeps them as
        long as there is room.

        With ``overwrite``, the keys are announced to everybody who calls `changes`, before and after. Replacing a value
        in ``invalid`` is not announced: a process with another record key may have that value in memory, and would pay
        for it again.
        """
        ...

    async def scan(self, cursor: bytes = b"") -> Page:
        """All values, a page at a time. The first page needs no cursor; cursors are opaque. A value that is there all
        the time is on at least one page; a value stored meanwhile may be on none. A page is small enough to fit in
        memory and to be read without a noticeable delay for others. It may be empty though more pages follow.
        """
        ...

    async def delete_many(self, keys: Collection[bytes]) -> int:
        """Delete the values of ``keys``. Returns how many there were. The keys are announced as overwritten ones are,
        also those without a value."""
        ...

    async def announce_purge(self, purge: Purge) -> None:
        """Tell everybody who calls `changes` what is removed next."""
        ...

    async def changes(self) -> Changes:
        """What any process has overwritten, deleted or announced since the last call. It may include keys whose values
        have not been overwritten yet, and a key again. One call at a time."""
        ...

    async def lease_many(self, keys: Sequence[bytes], *, ttl_s: float) -> set[bytes]:
        """Those of ``keys`` that no other caller has leased. They are leased to this caller for ``ttl_s``."""
        ...

    async def extend_many(self, keys: Collection[bytes], *, ttl_s: float) -> None:
        """Renew the leases on ``keys`` for ``ttl_s`` from now; 0 releases them."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class CounterStore(Protocol):
    """Counters that all processes add to. Like values, they may be lost: with the file, or with the server's memory."""

    async def add(self, name: str, amount: int, *, expires_at_s: int) -> int:
        """Add ``amount``, which may be 0, to a counter that begins at 0. Returns its new value. The store may drop it
        after ``expires_at_s``, Unix time. Raises `StoreError`; then the amount may or may not have been added."""
        ...


class Unleased:
    """The part of `Store` that stores in this process share. They have no leases, and drop nothing by age."""

    expires = False
    has_leases = False
    max_reads = 1

    def parts(self, keys: Sequence[bytes]) -> Mapping[Hashable, Sequence[bytes]]:
        return {None: keys}

    async def lease_many(self, keys: Sequence[bytes], *, ttl_s: float) -> set[bytes]:
        return set(keys)

    async def extend_many(self, keys: Collection[bytes], *, ttl_s: float) -> None:
        return None


class NoStore(Unleased):
    """`memory:`, for a cache that has only the memory tier."""

    async def get_many(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        return {}

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: TTL,
        overwrite: bool,
        invalid: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]:
        return {}

    async def scan(self, cursor: bytes = b"") -> Page:
        return Page({}, None)

    async def delete_many(self, keys: Collection[bytes]) -> int:
        return 0

    async def announce_purge(self, purge: Purge) -> None:
        return None

    async def changes(self) -> Changes:
        return Changes()

    async def aclose(self) -> None:
        return None
