"""The table of options: one row is a flag, a variable, a key of the file, a setting, and a row of README's table."""

from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from proxy.cli.options.config_file import use_config_file
from proxy.cli.options.environment import forbid_unknown_variables
from proxy.cli.options.option import Option, settings_fields
from proxy.cli.options.table import CONFIG, OPTIONS
from proxy.cli.options.types import COUNT
from proxy.cli.serve import serve_command
from proxy.config.settings import Settings
from tests.support import readme
from tests.support.settings import default_fields

ADDED = Option(name="max-things", type=COUNT, default="7", help="Maximum `things`.", field="things_count")


def test_readme_has_the_table_of_options() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.with_table(text, readme.table([*OPTIONS, CONFIG])) == text, "run: make readme"


def test_an_added_option_is_in_all_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = (*OPTIONS, ADDED)
    config = CONFIG.parameter(is_eager=True, expose_value=False, callback=use_config_file(options))
    command = click.Command("serve", params=[*(option.parameter() for option in options), config])

    def things(*arguments: str) -> Any:
        return settings_fields(options, command.make_context("serve", list(arguments)).params)["things_count"]

    file = tmp_path / "proxy.toml"
    file.write_text("max_things = 8\n")
    assert things() == default_fields(options)["things_count"] == 7
    assert things("--config", str(file)) == 8
    monkeypatch.setenv("EMBEDDING_PROXY_MAX_THINGS", "9")
    forbid_unknown_variables({option.variable for option in options})
    assert things("--config", str(file)) == 9
    assert things("--config", str(file), "--max-things", "10") == 10
    shown = command.get_help(click.Context(command, terminal_width=200))
    assert "Maximum things.  [env var: EMBEDDING_PROXY_MAX_THINGS; default: 7; x>=1]" in shown
    assert readme.table(options).endswith("\n| `--max-things` | `7` | Maximum `things`. |")


def test_the_command_has_the_options_of_the_table_and_no_others() -> None:
    assert [param.opts for param in serve_command.params] == [[option.flag] for option in (*OPTIONS, CONFIG)]


def test_every_setting_is_decided_by_one_option_or_is_made_of_several() -> None:
    by_one = Counter(option.field or option.key for option in OPTIONS if option.field is not None)
    assert set(by_one.values()) == {1}
    of_several = {"upstream", "routed", "record_key", "client_labels_key", "prices", "budgets", "store_timeout_s"}
    assert {field.name for field in fields(Settings)} == {*by_one, *of_several}
    assert not of_several & set(by_one)
