"""What can be said of dashboards and rules without a Prometheus."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.source import DASHBOARDS
from grafana.source.model import text_of
from proxy.telemetry.metrics import Metrics
from tests.grafana import expressions, schema
from tests.grafana.expressions import GRAFANA

EVERY = [*expressions.of_dashboards(), *expressions.of_rules("record"), *expressions.of_rules("alert")]
JSON = expressions.dashboards()
# What a histogram or a counter is called where it is asked for.
_SUFFIX = re.compile(r"_(bucket|sum|count|total)$")


def exported() -> set[str]:
    """The proxy's metrics by the names that they are declared under."""
    return {family.name for family in Metrics().families()}


def base(name: str) -> str:
    return name if name in exported() else _SUFFIX.sub("", name)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_the_json_is_what_the_source_says(dashboard: Any) -> None:
    path = GRAFANA / "dashboards" / f"{dashboard.name}.json"
    assert path.read_text() == text_of(dashboard), "run: make dashboards"


def test_there_is_no_other_json() -> None:
    assert set(JSON) == {dashboard.name for dashboard in DASHBOARDS}


@pytest.mark.parametrize("name", JSON)
def test_a_dashboard_loads_into_any_grafana(name: str) -> None:
    dashboard = JSON[name]
    assert dashboard["uid"] == f"embedding-proxy-{name}"
    assert "id" not in dashboard  # it is the database's, and another's there would be overwritten
    assert dashboard["schemaVersion"] >= 38
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "model"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    asked = " ".join(target["expr"] for panel in expressions.panels(dashboard) for target in panel["targets"])
    for variable in ("job", "instance", "model"):
        assert variables[variable]["datasource"]["uid"] == "${datasource}"
        assert f'{variable}=~"${variable}"' in asked


@pytest.mark.parametrize("name", JSON)
def test_a_panel_says_what_it_shows(name: str) -> None:
    found = list(expressions.panels(JSON[name]))
    identities = [panel["id"] for panel in JSON[name]["panels"]]
    assert len(set(identities)) == len(identities)
    for panel in found:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target["legendFormat"]
            assert target["instant"] is not target["range"]


@pytest.mark.parametrize("name", JSON)
def test_panels_do_not_lie_on_each_other(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in JSON[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells


@pytest.mark.parametrize("expression", EVERY, ids=str)
def test_an_expression_asks_for_what_there_is(expression: expressions.Expression) -> None:
    assert {base(name) for name in expression.metrics} <= exported()
    assert expression.recorded <= expressions.rules("record").keys()


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {base(name) for expression in expressions.of_dashboards() for name in expression.metrics}
    assert exported() - shown == set()


def test_every_recorded_series_is_used() -> None:
    used = {name for expression in EVERY if "record:" not in expression.where for name in expression.recorded}
    assert used == set(expressions.rules("record"))


@pytest.mark.parametrize("name", expressions.rules("alert"))
def test_an_alert_says_what_it_means_and_what_to_do(name: str) -> None:
    rule = expressions.rules("alert")[name]
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "description"}
    assert "{{ $labels." in rule["annotations"]["summary"]
    assert len(rule["annotations"]["description"]) > 100


@pytest.mark.parametrize("name", expressions.rules("alert"))
def test_an_alert_is_tested_to_fire_and_to_keep_silent(name: str) -> None:
    fires: set[str] = set()
    is_silent: set[str] = set()
    for path in sorted((GRAFANA / "rules" / "tests").glob("*.yaml")):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["promql_expr_test"]:
                asked = re.search(r'ALERTS\{alertname=~?"([^"]+)"', case["expr"])
                if asked is None or name not in asked[1].split("|"):
                    continue
                (fires if case["exp_samples"] else is_silent).add(test["name"])
    assert fires
    assert is_silent - fires


@pytest.mark.parametrize("path", sorted((GRAFANA / "provisioning").rglob("*.yaml")), ids=lambda path: path.name)
def test_provisioning_is_of_grafanas_first_format(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["apiVersion"] == 1


@pytest.mark.parametrize("name", JSON)
def test_grafana_knows_every_field_and_value(name: str) -> None:
    assert schema.complaints(JSON[name]) == []


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ('"colorMode": "value"', '"colourMode": "value"', "/options/colourMode is unknown"),
        (
            '"colorMode": "value"',
            '"colorMode": "hue"',
            "/options/color_mode is 'hue' and no <enum 'BigValueColorMode'>",
        ),
        ('"w": 8', '"w": "8"', "/grid_pos/w is '8' and no <class 'int'>"),
        ('"type": "stat"', '"type": "number"', "number is no panel"),
        ('"unit": "s"', '"unit": "seconds"', "seconds is no unit"),
    ],
)
def test_what_grafana_does_not_know_is_found(right: str, wrong: str, complaint: str) -> None:
    text = json.dumps(JSON["overview"])
    assert right in text
    assert any(complaint in found for found in schema.complaints(json.loads(text.replace(right, wrong))))
