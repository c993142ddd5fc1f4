"""Which timeout runs, as a connection goes from one request to the next."""

import pytest

from proxy.http.timeouts import HEAD_TIMEOUT_S, IDLE_TIMEOUT_S, LINGER_S, ConnectionTimer, Overdue

START_S = 1000.0
A_LITTLE_S = 0.1


@pytest.fixture
def timer() -> ConnectionTimer:
    return ConnectionTimer(START_S)


def test_a_new_connection_owes_a_head(timer: ConnectionTimer) -> None:
    assert timer.overdue(START_S + HEAD_TIMEOUT_S) is None
    assert timer.overdue(START_S + HEAD_TIMEOUT_S + A_LITTLE_S) is Overdue.HEAD


def test_after_a_request_it_is_idle(timer: ConnectionTimer) -> None:
    timer.request_ended(START_S + 9)
    assert timer.overdue(START_S + 9 + IDLE_TIMEOUT_S) is None
    assert timer.overdue(START_S + 9 + IDLE_TIMEOUT_S + A_LITTLE_S) is Overdue.NEXT_REQUEST


def test_the_first_bytes_of_a_request_start_the_time_for_its_head(timer: ConnectionTimer) -> None:
    timer.request_ended(START_S)
    timer.head_began(START_S + IDLE_TIMEOUT_S)
    assert timer.overdue(START_S + IDLE_TIMEOUT_S + HEAD_TIMEOUT_S) is None
    assert timer.overdue(START_S + IDLE_TIMEOUT_S + HEAD_TIMEOUT_S + A_LITTLE_S) is Overdue.HEAD


def test_a_response_that_is_still_read_postpones_idleness_but_no_head(timer: ConnectionTimer) -> None:
    later = START_S + IDLE_TIMEOUT_S
    timer.postpone(later)
    assert timer.overdue(later) is Overdue.HEAD
    timer.request_ended(START_S)
    timer.postpone(later)
    assert timer.overdue(later + IDLE_TIMEOUT_S) is None
    assert timer.overdue(later + IDLE_TIMEOUT_S + A_LITTLE_S) is Overdue.NEXT_REQUEST


def test_lingering_has_a_time_of_its_own(timer: ConnectionTimer) -> None:
    timer.linger_began(START_S + 50)
    assert not timer.is_linger_over(START_S + 50 + LINGER_S)
    assert timer.is_linger_over(START_S + 50 + LINGER_S + A_LITTLE_S)
