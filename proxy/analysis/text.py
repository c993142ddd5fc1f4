"""The report on a terminal."""

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from proxy.analysis import tables
from proxy.analysis.report import Report
from proxy.analysis.tables import Table
from proxy.printable import printable

_TEXT_COLUMNS = ("reason", "what the proxy does", "format", "file")
_PLAIN_WIDTH = 120  # where the output is no terminal


def show(report: Report, console: Console) -> None:
    console.print(Text(tables.headline(report), style="bold"))
    for table in tables.tables(report):
        console.print()
        console.print(Text(table.title, style="bold"))
        console.print(_rich(table))


def console() -> Console:
    """For standard output, in colors only on a terminal."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=_PLAIN_WIDTH, no_color=True)


def _rich(table: Table) -> RichTable:
    shown = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=any(table.columns))
    for number, column in enumerate(table.columns):
        is_text = table.of_text or number == 0 or column in _TEXT_COLUMNS
        shown.add_column(column, justify="left" if is_text else "right", header_style="dim", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    return shown
