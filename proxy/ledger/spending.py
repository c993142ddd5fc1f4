"""What clients may spend in a window of time, and what they have spent (pure)."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase

DAY, MONTH = "day", "month"
# Money is counted in billionths of its currency: prices are per million tokens, and some are below a thousandth.
_MONEY_UNITS, _UNITS_PER_TOKEN = 1_000_000_000, 1000
_DECEMBER = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingBudget:
    """``[budgets.NAME]``. Exactly one of ``tokens`` and ``money`` is not None."""

    name: str
    clients: tuple[str, ...] = ("*",)  # patterns of client labels
    models: tuple[str, ...] = ("*",)  # patterns of model names
    tokens: int | None = None
    money: float | None = None
    window: str | float = DAY  # DAY, MONTH, or seconds
    is_shared: bool = False  # by all clients that match; if not, each has its own

    def covers(self, client: str, model: str) -> bool:
        return any(fnmatchcase(client, pattern) for pattern in self.clients) and any(
            fnmatchcase(model, pattern) for pattern in self.models
        )

    @property
    def unit(self) -> str:
        return "tokens" if self.money is None else "money"

    @property
    def limit_units(self) -> int:
        return round(self.money * _MONEY_UNITS) if self.money is not None else self.tokens or 0

    def units(self, tokens: int, price: float) -> int:
        """The units that ``tokens`` use at ``price``, money per million tokens."""
        return tokens if self.money is None else round(tokens * price * _UNITS_PER_TOKEN)

    def amount(self, units: int) -> float:
        """``units`` as an operator writes them: tokens or money."""
        return units if self.money is None else units / _MONEY_UNITS

    def tokens_in(self, units: int, price: float) -> int | None:
        """How many tokens ``units`` pay for; None if the model costs nothing."""
        if self.money is None:
            return units
        return int(units / (price * _UNITS_PER_TOKEN)) if price else None


def window_of(window: str | float, now_s: float) -> tuple[int, int]:
    """Start and end of the window that ``now_s``, Unix time, is in. Days and months are in UTC. Windows of a number of
    seconds follow each other without gaps since 1970."""
    now = datetime.fromtimestamp(now_s, UTC)
    if window == MONTH:
        start = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        years, month = divmod(start.month, _DECEMBER)
        return int(start.timestamp()), int(start.replace(year=start.year + years, month=month + 1).timestamp())
    seconds = 86400 if window == DAY else max(1, int(window))
    start_s = int(now_s) // seconds * seconds
    return start_s, start_s + seconds


@dataclass(slots=True, eq=False)
class Account:
    """One client's use of one budget in one window, in the budget's units.

    ``stored`` is what all processes have reported, as far as this one knows; it only grows. ``pending`` is what this
    process has not reported yet, and ``sending`` what it is reporting. ``reserved`` is for its calls in flight.
    """

    budget: SpendingBudget
    client: str
    start_s: int
    end_s: int
    stored: int = 0
    pending: int = 0
    sending: int = 0
    reserved: int = field(default=0)

    @property
    def name(self) -> str:
        """Equal in every process that shares a store."""
        return f"{self.budget.name}:{self.client}:{self.start_s}"

    @property
    def spent(self) -> int:
        return self.stored + self.pending + self.sending

    @property
    def left(self) -> int:
        return max(0, self.budget.limit_units - self.spent)

    @property
    def has_room(self) -> bool:
        """Whether a call may be sent: something is left besides what is reserved for calls in flight. If none is in
        flight, one call may use more than is left, since nobody knows what it costs."""
        return self.left > 0 and (self.reserved == 0 or self.spent + self.reserved < self.budget.limit_units)
