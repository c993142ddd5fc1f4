"""That the status page, dashboards and alerts name exactly the values that the proxy has, and no others."""

import json
import re

import pytest

from grafana.source.panels import BREAKER_STATES as DASHBOARD_STATES
from grafana.source.panels import COLOURS
from proxy.admin.page import page_html
from proxy.labels import (
    BREAKER_STATES,
    CANARY_ALARMS,
    OUTCOMES,
    BypassReason,
    CanaryVerdict,
    ItemResult,
    RequestOutcome,
)
from proxy.telemetry.metrics import STAGES, Metrics
from tests.grafana import expressions

PAGE = page_html()
VALIDATIONS = {"confirmed", "refused", "unknown"}
KINDS = {"billed", "saved"}
# By the metric's name and the label's.
KNOWN: dict[tuple[str, str], set[str]] = {
    ("canary_checks_total", "verdict"): set(CanaryVerdict),
    ("canary_verdict", "verdict"): set(CanaryVerdict),
    ("bypasses_total", "reason"): set(BypassReason),
    ("cost_total", "kind"): KINDS,
    ("items_total", "result"): set(ItemResult),
    ("request_duration_seconds", "outcome"): set(OUTCOMES),
    ("requests_total", "outcome"): set(OUTCOMES),
    ("stage_duration_seconds", "stage"): set(STAGES),
    ("tokens_total", "kind"): KINDS,
    ("validations_total", "result"): VALIDATIONS,
    ("whole_body_requests_total", "reason"): set(BypassReason),
}
EVERY = [*expressions.of_dashboards(), *expressions.of_rules("record"), *expressions.of_rules("alert")]
SELECTOR = re.compile(r"\bembedding_proxy_(\w+?)(?:_bucket|_sum|_count)?\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')


def named_in(promql: str) -> set[tuple[str, str, str]]:
    """The metric, the label and the value of each matcher of a label that `KNOWN` has."""
    return {
        (metric, label, value)
        for metric, matchers in SELECTOR.findall(promql)
        for label, values in MATCHER.findall(matchers)
        if (metric, label) in KNOWN
        for value in values.split("|")
    }


@pytest.mark.parametrize("expression", EVERY, ids=str)
def test_an_expression_names_known_values(expression: expressions.Expression) -> None:
    assert {
        (metric, label, value)
        for metric, label, value in named_in(expression.promql)
        if value not in KNOWN[metric, label]
    } == set()


def test_matchers_are_found() -> None:
    found = {each for expression in EVERY for each in named_in(expression.promql)}
    assert {("requests_total", "outcome", "error"), ("items_total", "result", "bypass")} <= found
    assert ("request_duration_seconds", "outcome", "hit") in found
    drifted = {value for metric, _, value in found if metric == "canary_verdict"}
    assert drifted == set(CANARY_ALARMS)


def test_dashboards_have_a_colour_for_every_value() -> None:
    assert set(COLOURS["outcome"]) == set(OUTCOMES)
    assert set(COLOURS["result"]) == set(ItemResult) | VALIDATIONS
    assert set(COLOURS["stage"]) == set(STAGES)
    assert set(COLOURS["kind"]) == KINDS
    assert set(COLOURS["verdict"]) == set(CanaryVerdict)
    assert [text for _, (text, _) in sorted(DASHBOARD_STATES.items())] == [state.value for state in BREAKER_STATES]


def test_the_status_page_names_every_outcome_and_result() -> None:
    outcomes = re.search(r"const OUTCOMES = (\[.*?\]);", PAGE)
    sources = re.search(r"const SOURCES = \{(.*?)\};", PAGE, re.DOTALL)
    assert outcomes is not None
    assert sources is not None
    assert json.loads(outcomes[1]) == list(OUTCOMES)
    assert re.findall(r"(\w+): \"", sources[1]) == list(ItemResult)


def test_the_status_page_knows_the_verdicts_that_are_bad() -> None:
    bad = re.search(r"const BAD_VERDICTS = (\[.*?\]);", PAGE)
    assert bad is not None
    assert set(json.loads(bad[1])) == {*CANARY_ALARMS, CanaryVerdict.FAILED}


def test_the_status_page_names_known_states_of_breakers() -> None:
    assert set(re.findall(r'state [!=]== "([\w-]+)"', PAGE)) <= {state.value for state in BREAKER_STATES}


def test_metrics_have_a_series_for_every_value_from_the_start() -> None:
    assert values_of("embedding_proxy_request_duration_seconds", "outcome") == set(OUTCOMES)
    assert values_of("embedding_proxy_items", "result") == set(ItemResult)


def test_label_values_are_plain_strings() -> None:
    """orjson does not take others as the keys of ``status.json``."""
    metrics = Metrics()
    metrics.of_model(None).count_request(RequestOutcome.HIT, 200)
    samples = [sample for family in metrics.families() for sample in family.samples]
    assert {type(value) for sample in samples for value in sample.labels.values()} == {str}


def values_of(name: str, label: str) -> set[str]:
    (family,) = (family for family in Metrics().families() if family.name == name)
    return {sample.labels[label] for sample in family.samples}
