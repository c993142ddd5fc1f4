"""The same with a real Prometheus that scrapes real proxies: ``make test-grafana``."""

import math
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.grafana import expressions, live
from tests.grafana.expressions import GRAFANA, RULES, Expression, filled
from tests.grafana.live import Live, Prometheus

pytestmark = pytest.mark.prometheus

_TIMEOUT_S = 60.0
# What can't have data here, and why; that it has none is tested, too.
WITHOUT_DATA = {
    "overview: Hit rate by item against last week B": "there was no Prometheus a week ago",
}
WITH_DATA = [
    *(expression for expression in expressions.of_dashboards() if expression.where not in WITHOUT_DATA),
    *expressions.of_rules("record"),
]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live.serving(tmp_path_factory.mktemp("prometheus")) as serving:
        yield serving


@pytest.fixture
def prometheus(serving: Live) -> Prometheus:
    return serving.prometheus


def values(prometheus: Prometheus, expression: Expression) -> list[float]:
    """What it is now, of each series; that a histogram without observations is NaN is no data."""
    found: list[dict[str, Any]] = prometheus.get("query", query=filled(expression.promql))["result"]
    return [number for series in found if not math.isnan(number := float(series["value"][1]))]


@pytest.mark.timeout(600)  # weeks of samples: it takes most of a minute of CPU time
@pytest.mark.parametrize("what", ["check", "test"])
def test_promtool_finds_nothing_wrong(what: str) -> None:
    files = RULES if what == "check" else sorted((GRAFANA / "rules" / "tests").glob("*.yaml"))
    command = [live.find("promtool"), what, "rules", *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("expression", WITH_DATA, ids=str)
def test_an_expression_has_data(serving: Live, prometheus: Prometheus, expression: Expression) -> None:
    assert serving.poll(lambda: bool(values(prometheus, expression)), timeout_s=_TIMEOUT_S), filled(expression.promql)
    if expression.unit == "percentunit":
        # A rate is an estimate; where the series of a ratio began at different times it may be a little off. A budget
        # may be exceeded by the calls in flight.
        most = 2.0 if "Budgets" in expression.where else 1.01
        assert all(-0.01 <= value <= most for value in values(prometheus, expression))


def test_panels_show_the_calls_that_hits_avoid(serving: Live, prometheus: Prometheus) -> None:
    avoided = [expression for expression in WITH_DATA if "Upstream calls avoided" in expression.where]
    assert len(avoided) == 2
    assert serving.poll(
        lambda: all(min(values(prometheus, expression), default=0) > 0 for expression in avoided),
        timeout_s=_TIMEOUT_S,
    )


@pytest.mark.parametrize("where", WITHOUT_DATA)
def test_an_expression_without_data_parses(prometheus: Prometheus, where: str) -> None:
    (expression,) = (expression for expression in expressions.of_dashboards() if expression.where == where)
    assert values(prometheus, expression) == []


@pytest.mark.parametrize("expression", expressions.of_rules("alert"), ids=str)
def test_prometheus_takes_every_alerts_expression(prometheus: Prometheus, expression: Expression) -> None:
    values(prometheus, expression)


def test_every_rule_is_evaluated_without_an_error(serving: Live, prometheus: Prometheus) -> None:
    def states() -> dict[str, str]:
        groups = prometheus.get("rules")["groups"]
        return {rule["name"]: rule["health"] + rule.get("lastError", "") for group in groups for rule in group["rules"]}

    wanted = dict.fromkeys([*expressions.rules("record"), *expressions.rules("alert")], "ok")
    serving.poll(lambda: states() == wanted, timeout_s=_TIMEOUT_S)
    assert states() == wanted


def test_a_forged_record_fires_its_alert(serving: Live, prometheus: Prometheus) -> None:
    """The one that has no time to wait out: from a proxy's counter to a rendered text, all of it is real."""

    def firing() -> list[dict[str, Any]]:
        alerts: list[dict[str, Any]] = prometheus.get("alerts")["alerts"]
        return [alert for alert in alerts if alert["labels"]["alertname"] == "EmbeddingProxyForgedRecords"]

    assert serving.poll(lambda: bool(firing()), timeout_s=_TIMEOUT_S)
    assert firing()[0]["annotations"]["summary"].startswith("127.0.0.1:")


@pytest.mark.parametrize(("selector", "label"), expressions.of_variables())
def test_a_variable_has_values(serving: Live, prometheus: Prometheus, selector: str, label: str) -> None:
    asked = {"match[]": selector}
    assert serving.poll(lambda: bool(prometheus.get(f"label/{label}/values", **asked)), timeout_s=_TIMEOUT_S)
