"""``[budgets]`` as values, and one line for each mistake."""

import tomllib
from typing import Any

import pytest

from proxy.config.budget_table import parse_budgets
from proxy.config.settings import BudgetSettings
from proxy.errors import ConfigError
from proxy.ledger.spending import SpendingBudget


def parsed(text: str, *, has_prices: bool = True, names_clients: bool = True) -> BudgetSettings:
    table: dict[str, Any] = tomllib.loads(text)
    return parse_budgets(table, "proxy.toml", has_prices=has_prices, names_clients=names_clients)


def test_every_key_of_a_budget_is_read() -> None:
    settings = parsed(
        """
        on_store_down = "closed"
        [search]
        clients = ["search", "search-*"]
        models = ["text-*"]
        tokens = 1000000
        window = "6h"
        [all]
        money = 20
        window = "month"
        shared = true
        """
    )
    assert not settings.fails_open
    assert settings.budgets == (
        SpendingBudget(
            name="search", clients=("search", "search-*"), models=("text-*",), tokens=1_000_000, window=21600.0
        ),
        SpendingBudget(name="all", money=20.0, window="month", is_shared=True),
    )


def test_there_are_none_by_default() -> None:
    assert parsed("") == BudgetSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[b]", "[budgets.b] needs tokens or money, and not both"),
        ("[b]\ntokens = 1\nmoney = 1", "[budgets.b] needs tokens or money, and not both"),
        ("[b]\ntokens = 0", "[budgets.b]: Expected `int` >= 1"),
        ("[b]\nmoney = -1", "[budgets.b]: Expected `float` > 0"),
        ("[b]\ntokens = 1\nwindow = 'year'", "[budgets.b] window: 'year' is not a duration; accepted: a number"),
        ("[b]\ntokens = 1\nwindow = '10ms'", "window: accepted: day, month, or a duration of at least 1s"),
        ("[b]\ntokens = 1\nclient = 'x'", "unknown field `client`; accepted: clients, models, tokens, money"),
        ("[b]\ntokens = 1\nclients = []", "[budgets.b]: Expected `array` of length >= 1"),
        ("on_store_down = 'ajar'", '[budgets] on_store_down: accepted: "open", "closed"'),
        ("tokens = 5", "[budgets"),
    ],
)
def test_a_mistake_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(text)
    assert message in str(refused.value)
    assert str(refused.value).startswith("proxy.toml: ")
    assert "\n" not in str(refused.value)


def test_money_needs_prices() -> None:
    with pytest.raises(ConfigError, match=r"money needs the prices of models: add \[prices\]"):
        parsed("[b]\nmoney = 1", has_prices=False)


def test_by_client_needs_names_of_clients() -> None:
    with pytest.raises(ConfigError, match="nothing tells clients apart"):
        parsed("[b]\ntokens = 1", names_clients=False)
    assert parsed("[b]\ntokens = 1\nshared = true", names_clients=False).budgets
