"""What a dashboard is made of: the values that its own file fills in, and model.py turns into Grafana's JSON (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from grafana.source.promql import Queries, series

Kind = Literal["timeseries", "stat", "bargauge", "state-timeline", "table"]
# From which value on a colour counts; the first one is what everything below has.
Steps = Sequence[tuple[float | None, str]]

COLUMNS = 24
GREEN, YELLOW, ORANGE, RED = "green", "yellow", "orange", "red"

PLAIN: Steps = ((None, GREEN),)
HIT_STEPS: Steps = [(None, RED), (0.2, ORANGE), (0.5, YELLOW), (0.8, GREEN)]
ERROR_STEPS: Steps = [(None, GREEN), (0.01, YELLOW), (0.05, RED)]
FULL_STEPS: Steps = [(None, GREEN), (0.6, YELLOW), (0.8, RED)]
ANY_STEPS: Steps = [(None, GREEN), (0.000001, RED)]
# Of what every request waits for: the store, the event loop.
DELAY_STEPS_S: Steps = [(None, GREEN), (0.02, YELLOW), (0.1, RED)]

# The same thing has the same colour on every panel, whatever else is there: by label, where that is the whole legend.
COLOURS = {
    "outcome": {"hit": GREEN, "partial": YELLOW, "miss": ORANGE, "bypass": "purple", "error": RED},
    "result": {
        "memory": GREEN,
        "store": "dark-green",
        "duplicate": "light-green",
        "joined": "blue",
        "upstream": ORANGE,
        "bypass": "purple",
        "confirmed": GREEN,
        "refused": RED,
        "unknown": YELLOW,
    },
    "verdict": {
        "first": "blue",
        "same-bits": GREEN,
        "within-noise": "dark-green",
        "last-bits": "light-green",
        "failed": YELLOW,
        "drifted": RED,
        "other-model": "dark-red",
        "dimensions": "purple",
    },
    "kind": {"saved": GREEN, "billed": ORANGE},
    "stage": {
        "parse": "purple",
        "lookup": GREEN,
        "wait": YELLOW,
        "slot": "dark-yellow",
        "upstream": ORANGE,
        "assemble": "blue",
    },
}
BREAKER_STATES = {0: ("closed", GREEN), 1: ("half-open", YELLOW), 2: ("open", RED)}


@dataclass(frozen=True, slots=True)
class Panel:
    """``unit`` is one of Grafana's, https://github.com/grafana/grafana/blob/main/packages/grafana-data/src/valueFormats/categories.ts;
    ``width`` and ``height`` are in cells of its grid, of which 24 are beside each other."""

    title: str
    description: str
    queries: Queries
    unit: str
    _: KW_ONLY
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    steps: Steps = PLAIN
    minimum: float | None = 0
    maximum: float | None = None
    decimals: int | None = None
    is_stacked: bool = False
    is_logarithmic: bool = False

    @property
    def is_instant(self) -> bool:
        """The value now; what is drawn over time asks for a range."""
        return self.kind not in {"timeseries", "state-timeline"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    name: str
    title: str
    description: str
    rows: Mapping[str, Sequence[Panel]]

    @property
    def uid(self) -> str:
        return f"embedding-proxy-{self.name}"


def stat(
    title: str, description: str, expr: str, unit: str, steps: Steps = PLAIN, *, decimals: int | None = None
) -> Panel:
    """One number, six of which fill a row."""
    return Panel(
        title, description, {title: expr}, unit, kind="stat", width=4, height=4, steps=steps, decimals=decimals
    )


def breakers(circuits: str, description: str, *, width: int = 8, height: int = 8) -> Panel:
    state = series("breaker_state", f'circuit=~"{circuits}"')
    return Panel(
        "Circuit breakers",
        description,
        {"{{instance}} {{circuit}}": f"max by (instance, circuit) ({state})"},
        "none",
        kind="state-timeline",
        width=width,
        height=height,
        steps=[(None, GREEN), (1, YELLOW), (2, RED)],
    )
