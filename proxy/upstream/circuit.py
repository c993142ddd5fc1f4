"""The circuit breaker of one upstream, and its log lines. Failures to connect open it."""

import logging
import time

from proxy.breaker import Attempt, Breaker, State
from proxy.errors import UpstreamDown
from proxy.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_MAX_CONNECT_FAILURES = 5
_COOLDOWN_S = 2.0


class Circuit:
    """A connection counts as success even if the call fails later: that failure may be about the one call."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._name = name
        self._metrics = metrics
        self._last_failure = ""
        self._is_refused = False
        self._breaker = Breaker(
            max_failures=_MAX_CONNECT_FAILURES,
            cooldown_s=_COOLDOWN_S,
            clock=time.monotonic,
            on_change=self._on_change,
        )
        metrics.breaker(f"upstream {name}", State.CLOSED.value)

    def attempt(self) -> Attempt:
        """A context manager for one call. Raises `UpstreamDown` while the circuit is open."""
        attempt = self._breaker.attempt()
        if attempt is None:
            raise UpstreamDown("The upstream can't be connected to; try again in a few seconds.")
        return attempt

    def connected(self) -> None:
        self._last_failure = ""
        self._breaker.succeeded()

    def responded(self) -> None:
        self._is_refused = False

    def connect_failed(self, described: str) -> None:
        if not self._last_failure:
            _log.warning("upstream %s: connection failed: %s", self._name, described)
        self._last_failure = described
        self._breaker.failed()

    def refused(self, described: str) -> None:
        """The upstream or the forward proxy was connected but refused the call. Logged once until a response."""
        if not self._is_refused:
            _log.warning("upstream %s: connection rejected: %s", self._name, described)
        self._is_refused = True

    def _on_change(self, state: State, before: State) -> None:
        self._metrics.breaker(f"upstream {self._name}", state.value)
        if before is State.CLOSED:  # once, and not with each probe that fails
            _log.warning(
                "circuit open for upstream %s (%s); probing every %g s", self._name, self._last_failure, _COOLDOWN_S
            )
        elif state is State.CLOSED:
            _log.warning("circuit closed for upstream %s", self._name)
