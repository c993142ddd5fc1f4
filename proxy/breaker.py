"""A circuit breaker: stop asking what fails, and try again with one request at a time."""

from collections.abc import Callable
from enum import Enum


class State(Enum):
    CLOSED = "closed"  # all may ask
    OPEN = "open"  # nobody may, until the cool-down is over
    HALF_OPEN = "half-open"  # one may ask, the probe; the others wait for what becomes of it


class _Event(Enum):
    FAILED_TOO_OFTEN = 1
    COOLED_DOWN = 2
    PROBE_SUCCEEDED = 3
    PROBE_FAILED = 4
    PROBE_ABANDONED = 5  # cancelled before it knew; the next one may probe


_TRANSITIONS = {
    (State.CLOSED, _Event.FAILED_TOO_OFTEN): State.OPEN,
    (State.OPEN, _Event.COOLED_DOWN): State.HALF_OPEN,
    (State.HALF_OPEN, _Event.PROBE_SUCCEEDED): State.CLOSED,
    (State.HALF_OPEN, _Event.PROBE_FAILED): State.OPEN,
    (State.HALF_OPEN, _Event.PROBE_ABANDONED): State.OPEN,
}


class Breaker:
    """Whoever is allowed to ask must say what became of it: `succeeded`, `failed` or `abandoned`.

    Answers of requests that were allowed while it was closed and come back later change nothing while it is open;
    during a probe they count as the probe's.
    ``clock`` counts seconds and only goes forward; ``on_change`` is called with each new state.
    """

    def __init__(
        self,
        *,
        max_failures: int,
        cooldown_s: float,
        clock: Callable[[], float],
        on_change: Callable[[State], None] = lambda _: None,
    ) -> None:
        self._max_failures = max_failures
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._on_change = on_change
        self._failures = 0  # in a row
        self._cooled_at = 0.0  # when open: the end of the cool-down
        self.state = State.CLOSED

    def __repr__(self) -> str:
        return f"<Breaker {self.state.value}, {self._failures} failures in a row>"

    @property
    def has_recent_failure(self) -> bool:
        """Whether the last one that asked failed."""
        return self._failures > 0

    @property
    def refuses(self) -> bool:
        """Whether `allows` would say no now; asking this commits to nothing."""
        return self.state is State.HALF_OPEN or (self.state is State.OPEN and self._clock() < self._cooled_at)

    def allows(self) -> bool:
        """Whether one more may ask now. True of a half-open breaker makes the caller its probe."""
        if self.state is State.OPEN and self._clock() >= self._cooled_at:
            self._move(_Event.COOLED_DOWN)
            return True
        return self.state is State.CLOSED

    def succeeded(self) -> None:
        self._failures = 0
        if self.state is State.HALF_OPEN:
            self._move(_Event.PROBE_SUCCEEDED)

    def failed(self) -> None:
        self._failures += 1
        if self.state is State.HALF_OPEN:
            self._move(_Event.PROBE_FAILED)
        elif self.state is State.CLOSED and self._failures >= self._max_failures:
            self._move(_Event.FAILED_TOO_OFTEN)

    def abandoned(self) -> None:
        if self.state is State.HALF_OPEN:
            self._move(_Event.PROBE_ABANDONED)

    def _move(self, event: _Event) -> None:
        self.state = _TRANSITIONS[self.state, event]
        if self.state is State.OPEN:
            self._cooled_at = self._clock() + (0 if event is _Event.PROBE_ABANDONED else self._cooldown_s)
        self._on_change(self.state)
