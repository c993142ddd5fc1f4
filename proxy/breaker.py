"""A circuit breaker: stop calling a dependency that fails, and probe it with one call at a time (pure)."""

from collections.abc import Callable
from enum import Enum
from typing import Self


class State(Enum):
    CLOSED = "closed"  # every attempt is permitted
    OPEN = "open"  # none is permitted until the cool-down has passed
    HALF_OPEN = "half-open"  # one attempt, the probe, is in progress; no other is permitted until it ends


class _Event(Enum):
    FAILED_TOO_OFTEN = 1
    COOLED_DOWN = 2
    PROBE_SUCCEEDED = 3
    PROBE_FAILED = 4
    PROBE_ABANDONED = 5  # it ended without a result; the next attempt is a probe


_TRANSITIONS = {
    (State.CLOSED, _Event.FAILED_TOO_OFTEN): State.OPEN,
    (State.OPEN, _Event.COOLED_DOWN): State.HALF_OPEN,
    (State.HALF_OPEN, _Event.PROBE_SUCCEEDED): State.CLOSED,
    (State.HALF_OPEN, _Event.PROBE_FAILED): State.OPEN,
    (State.HALF_OPEN, _Event.PROBE_ABANDONED): State.OPEN,
}


class Breaker:
    """Permits or refuses attempts, by the results of earlier ones.

    Any result counts, even of an attempt that was permitted before the circuit opened. During a probe, it closes or
    opens the circuit as the probe's own result would. While the circuit is open, it does not change the state.
    ``clock`` counts seconds and only goes forward; ``on_change`` is called with each new state and the one before.
    """

    def __init__(
        self,
        *,
        max_failures: int,
        cooldown_s: float,
        clock: Callable[[], float],
        on_change: Callable[[State, State], None] = lambda *_: None,
    ) -> None:
        self._max_failures = max_failures
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._on_change = on_change
        self._failures = 0  # consecutive
        self._cooled_at_s = 0.0  # when open: the end of the cool-down
        self._probe: Attempt | None = None  # when half-open
        self.state = State.CLOSED

    def __repr__(self) -> str:
        return f"<Breaker {self.state.value}, {self._failures} failures in a row>"

    @property
    def has_recent_failure(self) -> bool:
        """Whether the latest result was a failure."""
        return self._failures > 0

    @property
    def refuses(self) -> bool:
        """Whether `attempt` would return None now. Reading this does not start an attempt."""
        return self.state is State.HALF_OPEN or (self.state is State.OPEN and self._clock() < self._cooled_at_s)

    def attempt(self) -> "Attempt | None":
        """Permission for one attempt; None if the circuit refuses it. After the cool-down, the attempt is the probe."""
        if self.refuses:
            return None
        attempt = Attempt(self)
        if self.state is State.OPEN:
            self._probe = attempt
            self._move(_Event.COOLED_DOWN)
        return attempt

    def succeeded(self) -> None:
        """The result of an attempt, as `Attempt.succeeded` reports it."""
        self._failures = 0
        if self.state is State.HALF_OPEN:
            self._move(_Event.PROBE_SUCCEEDED)

    def failed(self) -> None:
        self._failures += 1
        if self.state is State.HALF_OPEN:
            self._move(_Event.PROBE_FAILED)
        elif self.state is State.CLOSED and self._failures >= self._max_failures:
            self._move(_Event.FAILED_TOO_OFTEN)

    def end(self, attempt: "Attempt") -> None:
        if self._probe is attempt:  # no result has moved the circuit out of half-open
            self._move(_Event.PROBE_ABANDONED)

    def _move(self, event: _Event) -> None:
        before, self.state = self.state, _TRANSITIONS[self.state, event]
        if self.state is not State.HALF_OPEN:
            self._probe = None
        if self.state is State.OPEN:
            self._cooled_at_s = self._clock() + (0 if event is _Event.PROBE_ABANDONED else self._cooldown_s)
        self._on_change(self.state, before)


class Attempt:
    """One permitted attempt. Use it as a context manager, or call `end` in any case.

    If a probe did not end, its circuit would stay half-open and refuse everything forever. If a probe ends without a
    reported result, for example because it was cancelled, the next attempt is a probe.
    """

    __slots__ = ("_breaker",)

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def succeeded(self) -> None:
        self._breaker.succeeded()

    def failed(self) -> None:
        self._breaker.failed()

    def end(self) -> None:
        """May be called more than once."""
        self._breaker.end(self)
