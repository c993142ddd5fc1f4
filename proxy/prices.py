"""What tokens cost, by the operator's prices (pure)."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

_MILLION = 1_000_000


def price_of(model: str | None, prices: Mapping[str, float]) -> float | None:
    """Money per million tokens, by the first pattern that matches the name of ``model``; None if none does."""
    name = model or ""
    return next((price for pattern, price in prices.items() if fnmatchcase(name, pattern)), None)


def cost_of(tokens: int, model: str | None, prices: Mapping[str, float]) -> float | None:
    """The money that ``tokens`` cost; None if the model has no price."""
    price = price_of(model, prices)
    return None if price is None else tokens * price / _MILLION
