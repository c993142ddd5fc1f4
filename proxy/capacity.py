"""A bounded resource that tenants share fairly (pure)."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from proxy.errors import Overloaded
from proxy.tenant import Tenant


@dataclass(slots=True)
class _Account:
    """What one tenant uses, in total and by request."""

    used: int = 0
    by_request: dict[Hashable, int] = field(default_factory=dict)


class SharedCapacity:
    """``limit`` units of ``what``.

    A tenant with several requests may use at most as much as it leaves free: half of the limit if it is alone, and
    1 / (n + 1) if it is one of n greedy tenants. A tenant with one request may use all that is free, since it has no
    other request to wait for. Unverified tenants follow the same rule within ``unverified_limit``, since anyone can
    make up credentials.
    """

    def __init__(self, limit: int, what: str, *, unverified_limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._what = what
        self._accounts: dict[Tenant, _Account] = {}
        self._unverified_limit = unverified_limit
        self._used_by_unverified = 0

    def __repr__(self) -> str:
        return f"<SharedCapacity {self.used} of {self.limit} {self._what} used by {len(self._accounts)} tenants>"

    def take(self, tenant: Tenant, request: Hashable, amount: int, *, may_exceed: bool = False) -> None:
        """Add ``amount`` to the use by ``request`` of ``tenant``. Raises `Overloaded`, and then nothing changes.

        ``may_exceed``: allow more than the limit while no other request uses anything.
        """
        if not amount:
            return
        account = self._accounts.get(tenant) or _Account()
        own = account.by_request.get(request, 0)
        is_alone = may_exceed and self.used == own
        if not is_alone and self.used + amount > self.limit:
            raise Overloaded(f"Too many {self._what} are in use. Try again.")
        if not is_alone and not self._is_fair(tenant, account, own, amount):
            raise Overloaded(f"Too many {self._what} are in use by requests of this client. Wait for some to end.")
        self._accounts[tenant] = account
        account.used += amount
        account.by_request[request] = own + amount
        self._add(tenant, amount)

    def give_back(self, tenant: Tenant, request: Hashable, amount: int) -> None:
        if not amount:
            return
        account = self._accounts[tenant]
        account.used -= amount
        account.by_request[request] -= amount
        if not account.by_request[request]:
            del account.by_request[request]
        if not account.by_request:
            del self._accounts[tenant]
        self._add(tenant, -amount)

    def _add(self, tenant: Tenant, amount: int) -> None:
        self.used += amount
        if tenant.is_unverified:
            self._used_by_unverified += amount

    def _is_fair(self, tenant: Tenant, account: _Account, own: int, amount: int) -> bool:
        has_others = account.used > own
        after = account.used + amount
        if has_others and after > self.limit - self.used - amount:
            return False
        if not tenant.is_unverified or self._used_by_unverified == own:
            return True
        left = self._unverified_limit - self._used_by_unverified - amount
        return left >= (after if has_others else 0)
