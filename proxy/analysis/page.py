"""The report as one HTML page that needs nothing else, in light and dark."""

from html import escape

from proxy.amounts import percent_of, short_byte_size
from proxy.analysis import plot, tables
from proxy.analysis.plot import Line
from proxy.analysis.report import Report
from proxy.analysis.tables import Table

_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2024;--dim:#60646c;--grid:#d9d9e0;
--c0:#0a62d0;--c1:#c2410c;--c2:#15803d;--c3:#7c3aed;--c4:#b8117e;--c5:#0e7490}
@media (prefers-color-scheme:dark){:root{--bg:#111315;--fg:#edeef0;--dim:#a1a5ad;--grid:#363a3f;
--c0:#70b8ff;--c1:#ffa057;--c2:#5bd08b;--c3:#baa7ff;--c4:#ff8dcc;--c5:#4ccce6}}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;
margin:2rem auto;max-width:60rem;padding:0 1rem}
h1{font-size:1.3rem}h2{font-size:1.05rem;margin:2rem 0 .4rem}.lead{font-size:1.1rem}
.wide{overflow-x:auto}table{border-collapse:collapse}
th{color:var(--dim);font-weight:500;text-align:left}th,td{padding:.2rem .9rem .2rem 0;vertical-align:top}
tr+tr td{border-top:1px solid var(--grid)}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
svg{width:100%;max-width:44rem;height:auto}.grid{stroke:var(--grid)}.tick{fill:var(--dim);font-size:11px}
.line{fill:none;stroke-width:2}.bar{fill:var(--c0)}footer{color:var(--dim);margin-top:2rem}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;padding:0;margin:.2rem 0}
.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.4em;border-radius:50%}
"""
_COLORS = "".join(
    f".line.c{n}{{stroke:var(--c{n})}}.dot.c{n}{{fill:var(--c{n})}}i.c{n}{{background:var(--c{n})}}" for n in range(6)
)
_TEXT_COLUMNS = ("reason", "what the proxy does", "format", "file")


def render(report: Report) -> str:
    body = [f'<p class="lead">{escape(tables.headline(report))}</p>', *_plots(report)]
    body += [_table(table) for table in tables.tables(report)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>What an embedding cache would save</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}{_COLORS}</style></head><body><h1>What an embedding cache would save</h1>"
        f"{''.join(body)}<footer>embedding-proxy analyze {escape(report.version)}</footer></body></html>\n"
    )


def _plots(report: Report) -> list[str]:
    of = report.repetition
    if not of.items:
        return []
    parts = [_section("Hit rate by size", plot.lines("Hit rate by size", *_by_size(report)))]
    steps = [
        Line("of the items so far", [(step.items / of.items, step.repeated_so_far) for step in of.steps]),
        Line("of each part", [(step.items / of.items, step.repeated) for step in of.steps]),
    ]
    ends = [(0.0, "0"), (0.5, f"{of.items // 2:,}"), (1.0, f"{of.items:,} items")]
    parts.append(
        _section("Items that had come before, from the first to the last", plot.lines("Repeated", steps, ends))
    )
    if of.over_time:
        drawn = [(own.label, own.items / of.over_time, percent_of(own.items, of.over_time)) for own in of.intervals]
        parts.append(_section("How soon items come again", plot.bars("How soon items come again", drawn)))
    return parts


def _by_size(report: Report) -> tuple[list[Line], list[tuple[float, str]]]:
    """A line for each store, over the sizes of memory."""
    memories = sorted({own.memory_bytes for own in report.scenarios})
    places = {own: (number + 0.5) / len(memories) for number, own in enumerate(memories)}
    stores = dict.fromkeys(own.store_bytes for own in report.scenarios)
    drawn = [
        Line(
            "no store" if store is None else f"store of {short_byte_size(store)}",
            [(places[own.memory_bytes], own.hit_rate) for own in report.scenarios if own.store_bytes == store],
        )
        for store in stores
    ]
    return drawn, [(place, short_byte_size(memory)) for memory, place in places.items()]


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}"


def _table(table: Table) -> str:
    kinds = [
        "" if table.of_text or number == 0 or column in _TEXT_COLUMNS else ' class="n"'
        for number, column in enumerate(table.columns)
    ]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, table.columns, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    return _section(table.title, f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>')
