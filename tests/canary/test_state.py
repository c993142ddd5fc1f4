"""What the latest check said: when the next is due, what a failed one leaves, and what an older version has written."""

import msgspec
import pytest

from proxy.canary.state import RETRY_S, State, decode, encode
from proxy.canary.verdict import Comparison
from proxy.labels import CanaryVerdict

HOUR_S = 3600.0
DRIFTED = Comparison(verdict=CanaryVerdict.DRIFTED, distance=0.5, noise=1e-5, changed=1.0)


def test_a_model_that_was_never_checked_is_due() -> None:
    assert State().is_due(10 * HOUR_S, HOUR_S)


@pytest.mark.parametrize(
    ("state", "wait_s"), [(State(checked_at_s=1e6), 6 * HOUR_S), (State(checked_at_s=1e6, failures=2), RETRY_S)]
)
def test_the_next_check_is_due_after_its_time_and_sooner_after_a_failure(state: State, wait_s: float) -> None:
    assert not state.is_due(1e6, 6 * HOUR_S)
    assert not state.is_due(1e6 + wait_s - 1, 6 * HOUR_S)
    assert state.is_due(1e6 + wait_s, 6 * HOUR_S)


def test_after_a_failure_it_is_never_later_than_the_interval() -> None:
    assert State(checked_at_s=1e6, failures=1).is_due(1e6 + 60, 60)


def test_a_clock_that_is_far_ahead_does_not_end_the_checks() -> None:
    state = State(checked_at_s=1e6)
    assert not state.is_due(1e6 - HOUR_S + 1, HOUR_S)
    assert state.is_due(1e6 - HOUR_S, HOUR_S)


def test_a_failed_check_keeps_what_the_last_one_with_vectors_said() -> None:
    drifted = State().compared(DRIFTED, 1e6, epoch=3, detail="before, now")
    failed = drifted.failed("timeout", 2e6).failed("status 500", 3e6)
    assert (failed.latest, failed.verdict) == (CanaryVerdict.FAILED, CanaryVerdict.DRIFTED)
    assert (failed.failures, failed.failure) == (2, "status 500")
    assert (failed.checked_at_s, failed.measured_at_s) == (3e6, 1e6)
    assert (failed.distance, failed.epoch, failed.detail) == (0.5, 3, "before, now")


def test_a_check_with_vectors_ends_the_failures_and_keeps_the_largest_noise() -> None:
    first = State().compared(DRIFTED, 1e6, epoch=0)
    calm = Comparison(verdict=CanaryVerdict.SAME_BITS, distance=0.0, noise=0.0, changed=0.0)
    after = first.failed("timeout", 2e6).compared(calm, 3e6, epoch=1)
    assert (after.latest, after.failures, after.failure) == (CanaryVerdict.SAME_BITS, 0, "")
    assert (after.known_noise, after.noise, after.measured_at_s) == (1e-5, 0.0, 3e6)


def test_it_is_read_as_it_was_written_and_nothing_else_is() -> None:
    state = State().compared(DRIFTED, 1e6, epoch=3, detail="ä").failed("timeout", 2e6)
    assert decode(encode(state)) == state
    assert decode(None) is None
    for stored in (b"", b"\xff", encode(state)[:-1], msgspec.msgpack.encode({"later": 1}), msgspec.msgpack.encode(7)):
        assert decode(stored) is None
    assert decode(b"\x81\xa6detail\xa1\xff") is None  # no UTF-8
