"""``[prices]`` of the configuration file (pure)."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from proxy.errors import ConfigError

_MILLION = 1_000_000


def parse_prices(table: Mapping[str, Any], where: str) -> dict[str, float]:
    """Money per million tokens by patterns of model names, in the file's order. Raises `ConfigError`."""
    for name, price in table.items():
        if type(price) not in {int, float} or not price >= 0:
            hint = "; quote names that have dots" if type(price) is dict else ""
            raise ConfigError(f"{where}: [prices] {name!r}: accepted: money per million tokens, as 0.02{hint}")
    return {name: float(price) for name, price in table.items()}


def cost_of(tokens: int, model: str, prices: Mapping[str, float]) -> float | None:
    """The money that ``tokens`` cost, by the first pattern that matches ``model``; None if none does."""
    price = next((price for pattern, price in prices.items() if fnmatchcase(model, pattern)), None)
    return None if price is None else tokens * price / _MILLION
