"""``[budgets]`` of the configuration file (pure)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from proxy.config.quantities import parse_positive_seconds
from proxy.config.settings import BudgetSettings
from proxy.config.tables import Name, NonEmpty, read_table
from proxy.errors import ConfigError
from proxy.ledger.spending import DAY, MONTH, SpendingBudget

_Patterns = Annotated[list[NonEmpty], Meta(min_length=1)]


class _BudgetTable(Struct, forbid_unknown_fields=True, kw_only=True):
    clients: _Patterns | UnsetType = UNSET
    models: _Patterns | UnsetType = UNSET
    tokens: Annotated[int, Meta(ge=1, le=2**52)] | UnsetType = UNSET
    money: Annotated[float, Meta(gt=0, le=1e6)] | UnsetType = UNSET
    window: NonEmpty = DAY
    shared: bool = False


def parse_budgets(table: Mapping[str, Any], where: str, *, has_prices: bool, names_clients: bool) -> BudgetSettings:
    """The budgets in the file's order. Raises `ConfigError`."""
    rest = dict(table)
    on_store_down = rest.pop("on_store_down", "open")
    try:
        read_table(on_store_down, Literal["open", "closed"], "")
    except ConfigError as error:
        raise ConfigError(f'{where}: [budgets] on_store_down: accepted: "open", "closed"') from error
    budgets = []
    for name, value in read_table(rest, dict[Name, Any], f"{where}: [budgets]").items():
        own = f"{where}: [budgets.{name}]"
        budgets.append(_budget(name, read_table(value, _BudgetTable, own), own))
    for budget in budgets:
        own = f"{where}: [budgets.{budget.name}]"
        if budget.money is not None and not has_prices:
            raise ConfigError(f"{own} money needs the prices of models: add [prices], or use tokens")
        if not names_clients and (budget.clients != ("*",) or not budget.is_shared):
            raise ConfigError(
                f"{own} is by client, and nothing tells clients apart: use --client-keys or --client-labels-key-env,"
                " or shared = true without clients"
            )
    return BudgetSettings(budgets=tuple(budgets), fails_open=on_store_down == "open")


def _budget(name: str, table: _BudgetTable, where: str) -> SpendingBudget:
    tokens = None if table.tokens is UNSET else table.tokens
    money = None if table.money is UNSET else table.money
    if (tokens is None) == (money is None):
        raise ConfigError(f"{where} needs tokens or money, and not both")
    window: str | float = table.window
    if window not in {DAY, MONTH}:
        try:
            window = parse_positive_seconds(table.window)
        except ConfigError as error:
            raise ConfigError(f"{where} window: {error}; or day, or month") from error
        if window < 1:
            raise ConfigError(f"{where} window: accepted: day, month, or a duration of at least 1s")
    return SpendingBudget(
        name=name,
        clients=("*",) if table.clients is UNSET else tuple(table.clients),
        models=("*",) if table.models is UNSET else tuple(table.models),
        tokens=tokens,
        money=money,
        window=window,
        is_shared=table.shared,
    )
