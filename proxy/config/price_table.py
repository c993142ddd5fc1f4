"""``[prices]`` of the configuration file (pure)."""

from collections.abc import Mapping
from typing import Any

from proxy.errors import ConfigError

_MAX_PRICE = 1e9  # not infinity, which no sum of money recovers from


def parse_prices(table: Mapping[str, Any], where: str) -> dict[str, float]:
    """Money per million tokens by patterns of model names, in the file's order. Raises `ConfigError`."""
    for name, price in table.items():
        if type(price) not in {int, float} or not 0 <= price <= _MAX_PRICE:
            hint = "; quote names that have dots" if type(price) is dict else ""
            raise ConfigError(f"{where}: [prices] {name!r}: accepted: money per million tokens, such as 0.02{hint}")
    return {name: float(price) for name, price in table.items()}
