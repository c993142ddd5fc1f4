"""Every PromQL expression under grafana/: of panels, variables and rules."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

GRAFANA = Path(__file__).parents[2] / "grafana"
RULES = [GRAFANA / "rules" / "recording.yaml", GRAFANA / "rules" / "alerts.yaml"]
# As Grafana fills them in where "All" is chosen, and for a test that lasts for seconds.
_VARIABLES = {
    "$__rate_interval": "10s",
    "$__range": "1m",
    "$job": ".*",
    "$instance": ".*",
    "$model": ".*",
}
_METRIC = re.compile(r"\bembedding_proxy_\w+")


@dataclass(frozen=True, slots=True)
class Expression:
    where: str
    promql: str
    unit: str = ""  # Grafana's, of a panel

    def __str__(self) -> str:
        return self.where

    @property
    def metrics(self) -> set[str]:
        """The exported metrics it names; a recorded one has its level and a colon before its name."""
        return {
            found[0] for found in _METRIC.finditer(self.promql) if self.promql[found.start() - 1 : found.start()] != ":"
        }

    @property
    def recorded(self) -> set[str]:
        return set(re.findall(r"\w+:embedding_proxy_\w+:\w+", self.promql))


def dashboards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels that draw something; a collapsed row has its panels inside it."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def of_dashboards() -> list[Expression]:
    return [
        Expression(
            f"{name}: {panel['title']} {target['refId']}", target["expr"], panel["fieldConfig"]["defaults"]["unit"]
        )
        for name, dashboard in dashboards().items()
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]


def of_variables() -> list[tuple[str, str]]:
    """The selector and the label of each variable's ``label_values``."""
    queries = {
        variable["definition"]
        for dashboard in dashboards().values()
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    }
    found = [re.fullmatch(r"label_values\((.*), (\w+)\)", query) for query in sorted(queries)]
    return [(filled(match[1]), match[2]) for match in found if match is not None]


@cache
def rules(kind: str) -> dict[str, dict[str, Any]]:
    """The rules of ``kind``, "record" or "alert", by their names."""
    return {
        rule[kind]: rule
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if kind in rule
    }


def of_rules(kind: str) -> list[Expression]:
    return [Expression(f"{kind}: {name}", rule["expr"]) for name, rule in rules(kind).items()]


def filled(promql: str) -> str:
    for name, value in _VARIABLES.items():
        promql = promql.replace(name, value)
    assert "$" not in promql, f"a variable that no test fills in: {promql}"
    return promql
