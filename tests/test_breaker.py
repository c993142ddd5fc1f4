import asyncio

import pytest

from proxy.breaker import Attempt, Breaker, State


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
    return Breaker(max_failures=3, cooldown_s=10, clock=clock, on_change=lambda state, _: states.append(state))


def permitted(breaker: Breaker) -> Attempt:
    attempt = breaker.attempt()
    assert attempt is not None
    return attempt


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        with permitted(breaker) as attempt:
            attempt.failed()


def test_consecutive_failures_open_the_circuit(breaker: Breaker, states: list[State]) -> None:
    fail(breaker, 2)
    with permitted(breaker) as attempt:
        attempt.succeeded()
    fail(breaker, 2)
    assert breaker.state is State.CLOSED
    fail(breaker, 1)
    assert states == [State.OPEN]
    assert breaker.attempt() is None


def test_after_the_cool_down_only_one_probe_is_permitted(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 9.9
    assert breaker.attempt() is None
    clock.now = 10.0
    with permitted(breaker) as probe:
        assert [breaker.attempt() for _ in range(2)] == [None, None]
        probe.succeeded()
        assert all(breaker.attempt() for _ in range(3))


def test_a_failed_probe_opens_the_circuit_for_another_cool_down(
    breaker: Breaker, clock: Clock, states: list[State]
) -> None:
    fail(breaker, 3)
    clock.now = 10.0
    fail(breaker, 1)
    clock.now = 19.9
    assert breaker.attempt() is None
    clock.now = 20.0
    assert permitted(breaker)
    assert states == [State.OPEN, State.HALF_OPEN, State.OPEN, State.HALF_OPEN]


def test_after_a_cancelled_probe_the_next_attempt_probes(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10.0
    with pytest.raises(asyncio.CancelledError), permitted(breaker):
        raise asyncio.CancelledError
    assert permitted(breaker)
    assert breaker.attempt() is None


def test_after_a_probe_without_a_result_the_next_attempt_probes(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10.0
    permitted(breaker).end()
    assert permitted(breaker)
    assert breaker.attempt() is None


def test_only_the_end_of_the_probe_itself_lets_the_next_attempt_probe(breaker: Breaker, clock: Clock) -> None:
    early = permitted(breaker)
    fail(breaker, 3)
    clock.now = 10.0
    first = permitted(breaker)
    early.end()
    assert breaker.attempt() is None
    early.failed()  # the dependency still fails: it opens, whatever becomes of the probe
    clock.now = 20.0
    assert permitted(breaker)
    first.end()
    assert breaker.attempt() is None


def test_the_end_of_an_attempt_adds_nothing_to_its_result(breaker: Breaker, clock: Clock, states: list[State]) -> None:
    fail(breaker, 3)
    clock.now = 10.0
    with permitted(breaker) as probe:
        probe.succeeded()
    probe.end()
    assert states == [State.OPEN, State.HALF_OPEN, State.CLOSED]


def test_a_closed_circuit_opens_after_as_many_failures_as_before(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10.0
    with permitted(breaker) as attempt:
        attempt.succeeded()
    fail(breaker, 2)
    assert breaker.state is State.CLOSED


def test_late_results_change_nothing_while_the_circuit_is_open(breaker: Breaker, states: list[State]) -> None:
    failing, succeeding, abandoned = (permitted(breaker) for _ in range(3))
    fail(breaker, 3)
    failing.failed()
    succeeding.succeeded()
    abandoned.end()
    assert states == [State.OPEN]
    assert breaker.attempt() is None
    assert repr(breaker).startswith("<Breaker open")
