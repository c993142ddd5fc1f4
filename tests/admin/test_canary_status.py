"""The canary's part of the status, and of the screen, from metrics made by checks."""

from proxy.admin.history import History
from proxy.admin.status import Status, status_of
from proxy.cli import stats_text
from proxy.telemetry.metrics import Metrics
from tests.admin.test_status import ABOUT
from tests.support.canaries import HOUR_S, Process
from tests.support.dict_store import Clock, DictStore
from tests.support.drifting import DriftingModel


async def test_the_status_has_the_worst_verdict_of_each_model() -> None:
    model, clock = DriftingModel(), Clock()
    process = Process(DictStore(), model.origin(), clock)
    assert _status(process.metrics).canary == []
    await process.tick()
    (own,) = _status(process.metrics).canary
    assert (own.upstream, own.model, own.verdict, own.distance, own.epoch) == ("up", "m", "first", 0.0, 0)
    assert own.measured_at_s == clock.now
    model.status = 500
    clock.now += 6 * HOUR_S
    await process.tick()
    (own,) = _status(process.metrics).canary
    assert (own.verdict, own.failures) == ("failed", 1)
    model.status, model.weights = 200, "w2"
    clock.now += 6 * HOUR_S
    await process.tick()
    model.status = 500
    clock.now += 6 * HOUR_S
    await process.tick()
    (own,) = _status(process.metrics).canary
    assert (own.verdict, own.failures) == ("drifted", 1)
    assert own.distance > 0.5


async def test_the_screen_has_a_line_for_each_model_and_none_without_a_canary() -> None:
    process = Process(DictStore(), DriftingModel().origin(), Clock())
    assert "canary" not in stats_text.render(_status(process.metrics))
    await process.tick()
    lines = stats_text.render(_status(process.metrics)).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("canary"))
    assert lines[at].split() == ["canary", "verdict", "distance", "noise", "epoch"]
    assert lines[at + 1].split() == ["m", "first", "0.0e+00", "0.0e+00", "0"]


def _status(metrics: Metrics) -> Status:
    return status_of(metrics.families(), ABOUT, History(0.0), now_s=0.0, uptime_s=0.0, is_draining=False)
