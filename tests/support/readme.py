"""README's table of options: made from `proxy.cli.options.table`, and written by ``python -m tests.support.readme``."""

from collections.abc import Iterable

import click

from proxy.cli.options.option import Option
from proxy.cli.options.table import CONFIG, OPTIONS
from tests.support.client_process import ROOT

README = ROOT / "README.md"
_MARK = "<!-- options: make readme -->\n\n"
_END = "\n\n"


def table(options: Iterable[Option]) -> str:
    return "\n".join(["| flag | default | |", "|---|---|---|", *map(_row, options)])


def with_table(readme: str, new: str) -> str:
    """README with ``new`` in place of the table that it has."""
    before, mark, rest = readme.partition(_MARK)
    _, end, after = rest.partition(_END)
    assert mark
    assert end
    return before + mark + new + end + after


def _row(option: Option) -> str:
    choices = " " + r"\|".join(option.type.choices) if isinstance(option.type, click.Choice) else ""
    default = option.default_words or (f"`{option.default}`" if option.default is not None else "")
    cells = (f"`{option.flag}{choices}`", default, f"{option.help} {option.link}")
    return "".join(f"| {cell.strip()} " if cell else "| " for cell in cells) + "|"


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(with_table(text, table([*OPTIONS, CONFIG])), encoding="utf-8")
