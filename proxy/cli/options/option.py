"""One option of `serve`: its flag, its environment variable, its key in the file, and the setting that it decides."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import click

ENV_PREFIX = "EMBEDDING_PROXY_"


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    name: str  # --store-limit: `store-limit`
    help: str  # whole sentences, with literals in backticks
    link: str = ""  # a sentence of the README only, in Markdown
    type: click.ParamType[Any] = click.STRING
    metavar: str | None = None  # None: the type's
    default: str | Callable[[], str] | None = None  # a text, as an operator would write it
    default_words: str | None = None  # says in words which default applies, where that is not a constant
    field: str | None = ""  # of `Settings`; "": the one named like the key; None: the option is no field by itself
    to_field: Callable[[Any], Any] = _same  # the field's value from the type's

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def key(self) -> str:
        """Its key in the configuration file, which is also click's name for it."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.key.upper()

    def default_value(self) -> Any:
        """The value of the type; None if there is no default."""
        text = self.default() if callable(self.default) else self.default
        return None if text is None else self.type.convert(text, None, None)

    def parameter(self, **attributes: Any) -> click.Option:
        """The option as click's type."""
        return click.Option(
            [self.flag],
            envvar=self.variable,
            show_envvar=True,
            default=self.default,
            show_default=self.default_words or True,
            type=self.type,
            metavar=self.metavar,
            help=self.help.replace("`", ""),
            **attributes,
        )


def settings_fields(options: Iterable[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Settings` that one option each decides. ``values`` has the options' values by their keys."""
    return {
        option.field or option.key: option.to_field(values[option.key])
        for option in options
        if option.field is not None
    }
