import pytest

from proxy.breaker import Breaker, State


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def states() -> list[State]:
    return []


@pytest.fixture
def breaker(clock: Clock, states: list[State]) -> Breaker:
    return Breaker(max_failures=3, cooldown_s=10, clock=clock, on_change=states.append)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        assert breaker.allows()
        breaker.failed()


def test_it_opens_after_failures_in_a_row(breaker: Breaker, states: list[State]) -> None:
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.state is State.CLOSED
    fail(breaker, 1)
    assert states == [State.OPEN]
    assert not breaker.allows()


def test_after_the_cool_down_one_probe_goes_and_the_rest_wait_for_it(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 9.9
    assert not breaker.allows()
    clock.now = 10.0
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert [breaker.allows() for _ in range(3)] == [True, True, True]


def test_a_probe_that_fails_opens_it_for_another_cool_down(breaker: Breaker, clock: Clock, states: list[State]) -> None:
    fail(breaker, 3)
    clock.now = 10.0
    fail(breaker, 1)
    clock.now = 19.9
    assert not breaker.allows()
    clock.now = 20.0
    assert breaker.allows()
    assert states == [State.OPEN, State.HALF_OPEN, State.OPEN, State.HALF_OPEN]


def test_a_probe_that_is_cancelled_makes_room_for_the_next(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10.0
    assert breaker.allows()
    breaker.abandoned()
    assert [breaker.allows(), breaker.allows()] == [True, False]


def test_once_mended_it_takes_as_many_failures_as_before(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10.0
    assert breaker.allows()
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.state is State.CLOSED


def test_answers_that_come_late_change_nothing_once_it_is_open(breaker: Breaker, states: list[State]) -> None:
    fail(breaker, 3)
    breaker.failed()
    breaker.succeeded()
    breaker.abandoned()
    assert states == [State.OPEN]
    assert repr(breaker).startswith("<Breaker open")
