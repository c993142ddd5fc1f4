"""What one client used of one model (pure)."""

from collections.abc import Mapping

from proxy.labels import OUTCOMES, BypassReason, ItemResult, RequestOutcome

_MILLION = 1_000_000


class Row:
    """Counts since the process started. Tokens are whole, so that the sum over all rows is exact.

    ``client`` and ``model`` are labels: bounded in number, and safe to show. ``price`` is per million tokens; None:
    cost is not counted.
    """

    __slots__ = (
        "_items", "_requests", "billed", "bypasses", "client", "duplicates", "from_store", "held_s", "hit_items",
        "hits", "model", "price", "saved",
    )  # fmt: skip

    def __init__(self, client: str | None, model: str, price: float | None) -> None:
        self.client = client
        self.model = model
        self.price = price
        self._requests = dict.fromkeys(OUTCOMES, 0)
        self._items = dict.fromkeys(ItemResult, 0)
        # Counts of the fast path, which adds to them itself: a dictionary lookup by an enum, or a call, would take as
        # long as all of its counting.
        self.hits = 0
        self.hit_items = 0
        self.duplicates = 0  # of the hit items
        self.from_store = 0  # likewise
        self.billed = 0
        self.saved = 0
        self.bypasses: dict[BypassReason, int] = {}
        self.held_s = 0.0  # for the upstream's rate limit

    @property
    def requests(self) -> Mapping[RequestOutcome, int]:
        return self._requests | {RequestOutcome.HIT: self._requests[RequestOutcome.HIT] + self.hits}

    @property
    def items(self) -> Mapping[ItemResult, int]:
        counted = self._items
        from_memory = self.hit_items - self.duplicates - self.from_store
        return counted | {
            ItemResult.MEMORY: counted[ItemResult.MEMORY] + from_memory,
            ItemResult.STORE: counted[ItemResult.STORE] + self.from_store,
            ItemResult.DUPLICATE: counted[ItemResult.DUPLICATE] + self.duplicates,
        }

    def count_request(self, outcome: RequestOutcome, *, held_s: float) -> None:
        self._requests[outcome] += 1
        self.held_s += held_s

    def count_items(self, result: ItemResult, count: int) -> None:
        self._items[result] += count

    def count_bypass(self, reason: BypassReason) -> None:
        self.bypasses[reason] = self.bypasses.get(reason, 0) + 1

    @property
    def cost(self) -> tuple[float, float]:
        """What the billed and the saved tokens cost."""
        price = (self.price or 0.0) / _MILLION
        return self.billed * price, self.saved * price


UNCOUNTED = Row(None, "", None)  # of clients that are not told apart: nobody reads it
