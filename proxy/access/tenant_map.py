"""A number for each of what tenants name, bounded in bytes, so that no tenant's names displace another's (pure)."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Place = TypeVar("_Place", bound=Hashable)

# Measured with tracemalloc, rounded up: a tenant, and each of its names with a place.
_TENANT_BYTES, _NAME_BYTES = 500, 250
# The largest share of one tenant.
_TENANTS_PART = 16


@dataclass(slots=True)
class _Tenant(Generic[_Place]):
    numbers: dict[tuple[bytes, _Place], float] = field(default_factory=dict)  # oldest first
    weight_bytes: int = _TENANT_BYTES


class TenantMap(Generic[_Place]):
    """Tenant → (name, place) → number. The oldest of a tenant gives way to what is new of the same one, and the tenant
    that has had nothing new for longest to other tenants."""

    def __init__(self, max_bytes: int, *, weigh: Callable[[_Place], int]) -> None:
        """``weigh`` says what a place takes besides a constant."""
        self._max_bytes = max_bytes
        self._weigh = weigh
        self._tenants: OrderedDict[bytes, _Tenant[_Place]] = OrderedDict()
        self.weight_bytes = 0

    def __contains__(self, tenant: bytes) -> bool:
        return tenant in self._tenants

    def __len__(self) -> int:
        return sum(len(tenant.numbers) for tenant in self._tenants.values())

    def get(self, tenant: bytes, name: bytes, place: _Place) -> float | None:
        known = self._tenants.get(tenant)
        return None if known is None else known.numbers.get((name, place))

    def add(self, tenant: bytes) -> None:
        """Know a tenant, if it is only as such."""
        if tenant not in self._tenants:
            self._tenants[tenant] = _Tenant()
            self.weight_bytes += _TENANT_BYTES
        self._tenants.move_to_end(tenant)
        while self.weight_bytes > self._max_bytes and len(self._tenants) > 1:
            _, oldest = self._tenants.popitem(last=False)
            self.weight_bytes -= oldest.weight_bytes

    def put(self, tenant: bytes, name: bytes, place: _Place, number: float) -> None:
        self.remove(tenant, name, place)
        self.add(tenant)
        known = self._tenants[tenant]
        known.numbers[name, place] = number
        self._grow(known, self._size(place))
        while known.weight_bytes > self._max_bytes // _TENANTS_PART:
            self.remove(tenant, *next(iter(known.numbers)))
        self.add(tenant)  # what was added may have been too much in all

    def remove(self, tenant: bytes, name: bytes, place: _Place) -> None:
        known = self._tenants.get(tenant)
        if known is not None and known.numbers.pop((name, place), None) is not None:
            self._grow(known, -self._size(place))

    def clear(self, tenant: bytes, name: bytes) -> None:
        """Forget all places of a name, and a tenant of whom nothing is left."""
        known = self._tenants.get(tenant)
        if known is None:
            return
        for place in [place for its, place in known.numbers if its == name]:
            self.remove(tenant, name, place)
        if not known.numbers:
            del self._tenants[tenant]
            self.weight_bytes -= known.weight_bytes

    def _size(self, place: _Place) -> int:
        return _NAME_BYTES + self._weigh(place)

    def _grow(self, known: _Tenant[_Place], size: int) -> None:
        known.weight_bytes += size
        self.weight_bytes += size
