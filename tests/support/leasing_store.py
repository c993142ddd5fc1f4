"""A store with leases that a test gives to others."""

from collections.abc import Collection, Sequence

from proxy.errors import StoreError
from tests.support.dict_store import DictStore


class LeasingStore(DictStore):
    has_leases = True

    def __init__(self) -> None:
        super().__init__()
        self.of_others: set[bytes] = set()
        self.lease_failure: StoreError | None = None
        self.extended: list[tuple[set[bytes], float]] = []

    async def lease_many(self, keys: Sequence[bytes], *, ttl_s: float) -> set[bytes]:
        if self.lease_failure:
            raise self.lease_failure
        return set(keys) - self.of_others

    async def extend_many(self, keys: Collection[bytes], *, ttl_s: float) -> None:
        self.extended.append((set(keys), ttl_s))


class SharedLeases(DictStore):
    """A store of several replicas, each with a view of its own, with leases that do not expire."""

    has_leases = True

    def __init__(self) -> None:
        super().__init__()
        self._leased: set[bytes] = set()

    def of_another_process(self) -> "SharedLeases":
        other = SharedLeases()
        other.values, other.log, other.purges = self.values, self.log, self.purges
        other._leased = self._leased
        return other

    async def lease_many(self, keys: Sequence[bytes], *, ttl_s: float) -> set[bytes]:
        granted = set(keys) - self._leased
        self._leased |= granted
        return granted

    async def extend_many(self, keys: Collection[bytes], *, ttl_s: float) -> None:
        if not ttl_s:
            self._leased.difference_update(keys)
