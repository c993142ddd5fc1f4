"""Prints what tests found as a table: ``pytest --matrix``.

A test says which cell it fills with ``record_property("matrix", (row, column))``; a cell that several tests fill is
good only if all of them are.
"""

from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="print the tables that the tests fill")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--matrix"):
        return
    cells: dict[tuple[str, str], bool] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, cell in getattr(report, "user_properties", ()):
                if name == "matrix":
                    cells[cell] = cells.get(cell, True) and outcome == "passed"
    for line in table(cells):
        terminalreporter.write_line(line)


def table(cells: dict[tuple[str, str], bool]) -> list[str]:
    """Rows and columns in the order in which they first come; a cell that no test fills does not apply."""
    rows, columns = (list(dict.fromkeys(cell[i] for cell in cells)) for i in (0, 1))
    if not cells:
        return ["no test filled a cell"]
    shown = {True: "ok", False: "FAIL", None: "-"}
    lines = [["", *columns], *([row, *(shown[cells.get((row, column))] for column in columns)] for row in rows)]
    widths = [max(map(len, parts)) for parts in zip(*lines, strict=True)]
    return ["  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip() for line in lines]
