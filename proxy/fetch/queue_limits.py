"""How much may wait for the upstream: items and bytes, shared fairly among tenants."""

from proxy.capacity import SharedCapacity
from proxy.errors import Overloaded
from proxy.fetch.request import FetchRequest


class QueueLimits:
    """Counts requests from when they are submitted until their outcome is known."""

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self._items = _capacity(max_items, "items that wait for the upstream")
        self._bytes = _capacity(max_bytes, "bytes that wait for the upstream")

    @property
    def items(self) -> int:
        """How many wait."""
        return self._items.used

    def take(self, request: FetchRequest) -> None:
        """Count a request; the parts of a large one count as one. Raises `Overloaded`."""
        tenant, owner = request.client_request.tenant, id(request.client_request)
        self._items.take(tenant, owner, len(request.keys))
        try:
            self._bytes.take(tenant, owner, len(request.body))
        except Overloaded:
            self._items.give_back(tenant, owner, len(request.keys))
            raise

    def give_back(self, request: FetchRequest) -> None:
        tenant, owner = request.client_request.tenant, id(request.client_request)
        self._items.give_back(tenant, owner, len(request.keys))
        self._bytes.give_back(tenant, owner, len(request.body))


def _capacity(limit: int, what: str) -> SharedCapacity:
    # After a start all clients are unverified until their first call returns, so they may use most of the queue.
    return SharedCapacity(limit, what, unverified_limit=limit * 7 // 8)
