"""The circuit breaker of one upstream: what opens it, what is logged of it, and how often."""

import pytest

from proxy.errors import UpstreamDown
from proxy.telemetry.metrics import Metrics
from proxy.upstream.circuit import Circuit
from tests.support.samples import samples


def fail(circuit: Circuit, times: int, why: str = "refused") -> None:
    for _ in range(times):
        with circuit.attempt():
            circuit.connect_failed(why)


def is_open(metrics: Metrics) -> bool:
    return ("upstream east",) in samples(metrics, "breaker_state")


def test_five_failures_to_connect_open_it(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    circuit = Circuit("east", metrics)
    assert not is_open(metrics)
    fail(circuit, 4)
    assert caplog.messages == ["upstream east: connection failed: refused"]
    fail(circuit, 1, "reset")
    assert caplog.messages[1:] == ["circuit open for upstream east (reset); probing every 2 s"]
    assert is_open(metrics)
    with pytest.raises(UpstreamDown, match="try again in a few seconds"):
        circuit.attempt()


def test_a_connection_between_failures_keeps_it_closed(caplog: pytest.LogCaptureFixture) -> None:
    circuit = Circuit("east", Metrics())
    for _ in range(3):
        fail(circuit, 4)
        with circuit.attempt():
            circuit.connected()
    circuit.attempt().end()
    assert caplog.messages == ["upstream east: connection failed: refused"] * 3  # once until it is connected again


def test_an_outage_is_logged_once_however_many_probes_fail(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream.circuit._COOLDOWN_S", 0.0)
    circuit = Circuit("east", Metrics())
    fail(circuit, 5)
    for _ in range(20):
        fail(circuit, 1)
        circuit.attempt().end()  # cancelled
    assert caplog.messages[1:] == ["circuit open for upstream east (refused); probing every 0 s"]
    with circuit.attempt():
        circuit.connected()
    assert caplog.messages[2:] == ["circuit closed for upstream east"]
    fail(circuit, 5, "reset")
    assert caplog.messages[4:] == ["circuit open for upstream east (reset); probing every 0 s"]


def test_calls_that_end_without_a_result_count_for_nothing() -> None:
    circuit = Circuit("east", Metrics())
    for _ in range(20):
        with circuit.attempt():
            pass


def test_a_rejected_call_is_logged_once_until_a_response(caplog: pytest.LogCaptureFixture) -> None:
    circuit = Circuit("east", Metrics())
    for _ in range(2):
        circuit.refused("certificate")
        circuit.refused("certificate")
        circuit.connected()
        circuit.refused("certificate")
        circuit.responded()
    assert caplog.messages == ["upstream east: connection rejected: certificate"] * 2
    circuit.attempt().end()  # and opens no circuit
