"""A bounded map of numbers by tenant, in which no tenant displaces another's entries (pure)."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Scope = TypeVar("_Scope", bound=Hashable)

# Measured with tracemalloc, rounded up: a tenant, and each of its entries.
_TENANT_BYTES, _ENTRY_BYTES = 500, 250
# One tenant has at most this fraction (1/n) of the memory.
_MAX_TENANT_FRACTION = 16


@dataclass(slots=True)
class _Tenant(Generic[_Scope]):
    numbers: dict[tuple[bytes, _Scope], float] = field(default_factory=dict)  # oldest first
    weight_bytes: int = _TENANT_BYTES


class TenantMap(Generic[_Scope]):
    """Tenant → (credential, scope) → number.

    A tenant's newest entries evict its own oldest entries. If the map is full, the tenant without new entries for the
    longest time is evicted.
    """

    def __init__(self, max_bytes: int, *, weigh: Callable[[_Scope], int]) -> None:
        """``weigh`` returns the bytes that a scope takes besides a constant."""
        self._max_bytes = max_bytes
        self._weigh = weigh
        self._tenants: OrderedDict[bytes, _Tenant[_Scope]] = OrderedDict()
        self.weight_bytes = 0

    def __contains__(self, tenant: bytes) -> bool:
        return tenant in self._tenants

    def __len__(self) -> int:
        return sum(len(tenant.numbers) for tenant in self._tenants.values())

    def get(self, tenant: bytes, credential: bytes, scope: _Scope) -> float | None:
        entries = self._tenants.get(tenant)
        return None if entries is None else entries.numbers.get((credential, scope))

    def add(self, tenant: bytes) -> None:
        """Add a tenant, possibly without entries, or mark it as the most recent one."""
        if tenant not in self._tenants:
            self._tenants[tenant] = _Tenant()
            self.weight_bytes += _TENANT_BYTES
        self._tenants.move_to_end(tenant)
        while self.weight_bytes > self._max_bytes and len(self._tenants) > 1:
            _, oldest = self._tenants.popitem(last=False)
            self.weight_bytes -= oldest.weight_bytes

    def put(self, tenant: bytes, credential: bytes, scope: _Scope, number: float) -> None:
        entries = self._tenants.get(tenant)
        if entries is not None and entries.numbers.pop((credential, scope), None) is not None:
            entries.numbers[credential, scope] = number
            self._tenants.move_to_end(tenant)
            return
        self.add(tenant)
        entries = self._tenants[tenant]
        entries.numbers[credential, scope] = number
        self._grow(entries, self._size(scope))
        while entries.weight_bytes > self._max_bytes // _MAX_TENANT_FRACTION:
            self.remove(tenant, *next(iter(entries.numbers)))
        self.add(tenant)  # evicts other tenants if the new entry exceeds the total

    def remove(self, tenant: bytes, credential: bytes, scope: _Scope) -> None:
        entries = self._tenants.get(tenant)
        if entries is not None and entries.numbers.pop((credential, scope), None) is not None:
            self._grow(entries, -self._size(scope))

    def clear(self, tenant: bytes, credential: bytes) -> None:
        """Remove all scopes of a credential, and the tenant if it has no other entries."""
        entries = self._tenants.get(tenant)
        if entries is None:
            return
        for scope in [scope for its_credential, scope in entries.numbers if its_credential == credential]:
            self.remove(tenant, credential, scope)
        if not entries.numbers:
            del self._tenants[tenant]
            self.weight_bytes -= entries.weight_bytes

    def _size(self, scope: _Scope) -> int:
        return _ENTRY_BYTES + self._weigh(scope)

    def _grow(self, entries: _Tenant[_Scope], size: int) -> None:
        entries.weight_bytes += size
        self.weight_bytes += size
