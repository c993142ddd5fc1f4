"""Line and bar plots as SVG (pure). Colors are classes of the page's style sheet: c0, c1, …"""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 14, 44
_PLOT_WIDTH, _PLOT_HEIGHT = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
_GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
_COLORS = 6


class Line(NamedTuple):
    """``points`` are (x, y), both from 0 to 1."""

    label: str
    points: Sequence[tuple[float, float]]


def lines(title: str, drawn: Sequence[Line], x_labels: Sequence[tuple[float, str]]) -> str:
    """Lines over a common axis. y is in percent."""
    parts = [_frame(title), *map(_x_label, x_labels)]
    for number, line in enumerate(drawn):
        color = number % _COLORS
        points = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="line c{color}" points="{points}"/>')
        parts += [_dot(x, y, color, f"{line.label}: {y * 100:.1f} %") for x, y in line.points]
    return _svg(parts) + _legend([line.label for line in drawn])


def bars(title: str, drawn: Sequence[tuple[str, float, str]]) -> str:
    """Bars with a label, a part of 1, and a text that says how much it is."""
    width = _PLOT_WIDTH / max(1, len(drawn))
    parts = [_frame(title)]
    for number, (label, part, text) in enumerate(drawn):
        x = _LEFT + number * width
        parts.append(
            f'<rect class="bar" x="{x + width * 0.15:.1f}" y="{_y(part):.1f}" width="{width * 0.7:.1f}"'
            f' height="{part * _PLOT_HEIGHT:.1f}"><title>{escape(f"{label}: {text}")}</title></rect>'
        )
        parts.append(_x_label(((number + 0.5) / len(drawn), label)))
    return _svg(parts)


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _frame(title: str) -> str:
    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{_y(y):.1f}" y2="{_y(y):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{_y(y) + 4:.1f}" text-anchor="end">{y * 100:.0f} %</text>'
        for y in _GRID
    )
    return f"<title>{escape(title)}</title>{grid}"


def _x_label(label: tuple[float, str]) -> str:
    x, text = label
    anchor = "start" if x == 0 else "end" if x == 1 else "middle"
    return (
        f'<text class="tick" x="{_x(x):.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _dot(x: float, y: float, color: int, text: str) -> str:
    return (
        f'<circle class="dot c{color}" cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="3"><title>{escape(text)}</title></circle>'
    )


def _legend(labels: Sequence[str]) -> str:
    if len(labels) < 2:  # noqa: PLR2004 - one line needs no legend
        return ""
    items = "".join(f'<li><i class="c{n % _COLORS}"></i>{escape(label)}</li>' for n, label in enumerate(labels))
    return f'<ul class="legend">{items}</ul>'


def _x(part: float) -> float:
    return _LEFT + part * _PLOT_WIDTH


def _y(part: float) -> float:
    return _TOP + (1 - part) * _PLOT_HEIGHT
