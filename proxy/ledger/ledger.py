"""The rows of all clients, bounded in number (pure)."""

from collections.abc import Iterable

from proxy.ledger.row import UNCOUNTED, Row

OTHER = "other"  # clients without a label of their own, and models likewise
UNKNOWN = "unknown key"  # requests with none of the listed keys; no name has a space
# Series are never removed here, and Prometheus keeps them for a long time.
MAX_PSEUDONYMS = 50


class Ledger:
    """The rows by client and model.

    The operator's list limits the number of named clients. Pseudonyms have no such limit, since any credential has one.
    So a pseudonym gets rows of its own only after `admit`, and only the first `MAX_PSEUDONYMS` do; all others are
    `OTHER`. If the operator has a list, requests without a listed key are `UNKNOWN`.
    """

    def __init__(self, *, is_on: bool = True, max_clients: int | None = None) -> None:
        """``max_clients`` is None if an operator has listed the clients."""
        self.is_on = is_on
        self._max_clients = max_clients
        self._admitted: set[str] = set()
        self._rows: dict[tuple[str | None, str], Row] = {}

    def __repr__(self) -> str:
        return f"<Ledger {len(self._rows)} rows>" if self.is_on else "<Ledger off>"

    def admit(self, client: str | None) -> None:
        """Give a client rows of its own: an upstream has accepted its credential."""
        if client is None or self._max_clients is None or client in self._admitted:
            return
        if len(self._admitted) < self._max_clients:
            self._admitted.add(client)

    def label_of(self, client: str | None) -> str | None:
        """``client`` as metrics and logs may show it; None if clients are not told apart."""
        if not self.is_on:
            return None
        if self._max_clients is None:
            return client or UNKNOWN
        return client if client in self._admitted else OTHER

    def account_of(self, client: str | None) -> str | None:
        """The name of ``client`` for budgets: its label, or the label that it gets once an upstream accepts it."""
        if client is not None and self._max_clients is not None and len(self._admitted) < self._max_clients:
            return client if self.is_on else None
        return self.label_of(client)

    def row(self, client: str | None, model: str, price: float | None) -> Row:
        """The row of a client and of ``model``, which is a label. While the ledger is off, nothing reads what is
        counted."""
        if not self.is_on:
            return UNCOUNTED
        label = self.label_of(client)
        row = self._rows.get((label, model))
        if row is None:
            row = self._rows[label, model] = Row(label, model, price)
        return row

    def rows(self) -> Iterable[Row]:
        return self._rows.values()
