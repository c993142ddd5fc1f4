"""The file of `--config`: texts for the options, and tables that no flag can have."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from proxy.cli.options.option import Option
from proxy.config.budget_table import parse_budgets
from proxy.config.price_table import parse_prices
from proxy.config.provider_tables import parse_providers
from proxy.config.settings import BudgetSettings
from proxy.config.suggestion import suggestion
from proxy.protocol.provider import Provider

_TABLES = {"upstream": list, "providers": dict, "prices": dict, "budgets": dict}
_ACCEPTED = {
    "upstream": 'a URL or a name, as in upstream = "openai", or [[upstream]] tables, with two brackets',
    "providers": "tables, as [providers.NAME]",
    "provider": 'the name of a provider, as in provider = "vllm"; to change a provider, use [providers.NAME]',
    "budgets": "tables, as [budgets.NAME]",
    "prices": 'a table [prices] with lines as "text-embedding-3-*" = 0.02',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """With the default values, there is no file."""

    path: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)  # as the flags would have them, by the options' keys
    upstream: Sequence[Any] = ()
    providers: Mapping[str, Any] = field(default_factory=dict)
    prices: Mapping[str, Any] = field(default_factory=dict)
    budgets: Mapping[str, Any] = field(default_factory=dict)

    def provider_rows(self) -> Mapping[str, Provider]:
        """Raises `ConfigError`."""
        return parse_providers(self.providers, self.path)

    def prices_by_model(self) -> Mapping[str, float]:
        """Raises `ConfigError`."""
        return parse_prices(self.prices, self.path)

    def budgets_of_clients(self, *, names_clients: bool) -> BudgetSettings:
        """``names_clients``: whether clients are told apart. Raises `ConfigError`."""
        return parse_budgets(self.budgets, self.path, has_prices=bool(self.prices), names_clients=names_clients)


def read_config_file(path: Path, options: Iterable[Option]) -> ConfigFile:
    """Raises `click.UsageError` for a file that can't be read, and for keys and values that no option has."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"--config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = "; use upstream = … or [[upstream]] tables, not both" if "overwrite" in str(error) else ""
        raise click.UsageError(f"{path}: not TOML: {error}{hint}") from error
    tables = {key: values.pop(key) for key, kind in _TABLES.items() if isinstance(values.get(key), kind)}
    by_key = {option.key: option for option in options}
    texts = {key: _text(key, value, by_key, path) for key, value in values.items()}
    return ConfigFile(path=str(path), texts=texts, **tables)


def _text(key: str, value: Any, options: Mapping[str, Option], path: Path) -> str:
    """The value as an operator would give it to the flag."""
    if key in _ACCEPTED and not (key in options and type(value) is str):
        raise click.UsageError(f"{key} in {path}: accepted: {_ACCEPTED[key]}")
    if key not in options:
        raise click.UsageError(f"unknown key {key!r} in {path}; {suggestion(key, options)}")
    kind = options[key].type
    if type(value) is bool and isinstance(kind, click.Choice) and "yes" in kind.choices:
        return "yes" if value else "no"
    if type(value) not in {str, int, float}:
        raise click.UsageError(f"{key} in {path}: not a single value; accepted: a string or a number")
    if "\0" in str(value):  # no flag and no variable can have it, so nothing expects it
        raise click.UsageError(f"{key} in {path}: has a NUL character")
    return str(value)


def use_config_file(options: Iterable[Option]) -> Any:
    """A click callback for `--config`. The file overrides the defaults; flags and environment override the file."""

    def callback(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
        if path is not None:
            ctx.obj = read_config_file(path, options)
            ctx.default_map = dict(ctx.obj.texts)

    return callback


def config_file_of(ctx: click.Context) -> ConfigFile:
    return ctx.find_object(ConfigFile) or ConfigFile()
