"""Items that the store does not have: each is counted, and a line a minute says how many and why."""

import pytest

from proxy.cache.unstored import Unstored
from proxy.telemetry.metrics import Metrics
from tests.support.dict_store import Clock
from tests.support.samples import samples

COUNTED = "store_unstored_items_total"


def test_the_first_is_logged_at_once_and_then_one_line_a_minute_has_all(caplog: pytest.LogCaptureFixture) -> None:
    metrics, clock = Metrics(), Clock()
    unstored = Unstored(metrics, clock=clock)
    unstored.add(3, "full")
    assert caplog.messages == ["items not stored: 3 (full)"]
    unstored.add(2, "full")
    clock.now += 59.9
    unstored.add(1, "timeout")
    unstored.add(5, "full")
    assert len(caplog.messages) == 1
    clock.now += 0.1
    unstored.add(4, "timeout")
    assert caplog.messages[1:] == ["items not stored: 7 (full), 5 (timeout)"]
    assert samples(metrics, COUNTED) == {("full",): 10, ("timeout",): 5}


def test_nothing_is_no_reason_for_a_line(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    unstored = Unstored(metrics, clock=Clock())
    unstored.add(0, "full")
    unstored.flush()
    assert caplog.messages == []
    assert samples(metrics, COUNTED) == {}


def test_what_is_left_is_logged_at_the_end_and_begins_another_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    unstored = Unstored(Metrics(), clock=clock)
    unstored.add(1, "full")
    unstored.add(2, "full")
    clock.now += 30
    unstored.flush()
    unstored.flush()
    assert caplog.messages[1:] == ["items not stored: 2 (full)"]
    clock.now += 30
    unstored.add(1, "full")
    assert len(caplog.messages) == 2
