"""The wait after refusals that state none, or too short a one (pure)."""

import math
from dataclasses import dataclass

from proxy.pacing.sent_call import SentCall

# The wait after a refusal that states none. It doubles with each further one until a call is accepted. The next time it
# begins with half of what was long enough, down to the time of a few calls.
MIN_BACKOFF_S, _MAX_BACKOFF_S, _BACKOFF_CALLS = 1.0, 16.0, 2.0
# Once a shorter one was not long enough, it is a little longer: another replica may have been refused a moment later.
_MARGIN = 1.1
# A long one grows by less if the next probe is another request: the refusals may be about single requests.
_GROWTH, _GROWTH_OTHER, _LONG_BACKOFF_S = 2.0, 2.0**0.5, 2.0
# The least wait after the second refusal in a row, also if it states a shorter one. It doubles with each further one.
_REPEATED_BACKOFF_S = 0.25


@dataclass(slots=True)
class Backoff:
    refusals: int = 0  # in a row
    refused_at_s: float = -math.inf  # the last one
    wait_s: float = 0.0  # after the last refusal that stated none; 0: the last call was accepted
    _long_enough_s: float = 0.0  # after the last refusal
    _has_minimum: bool = False  # a shorter one was not, though no known rate explains that

    def refused(self, call: SentCall, now_s: float) -> float:
        """Returns the least wait."""
        if call.at_s >= self.refused_at_s:  # and not one of several that were in flight together
            self.refusals += 1
        self.refused_at_s = now_s
        if self.refusals <= 1:
            return 0.0
        return min(_MAX_BACKOFF_S, _REPEATED_BACKOFF_S * 2.0 ** min(self.refusals - 2, 10))

    def accepted(self, call: SentCall) -> None:
        """``call`` was sent after the last refusal."""
        if self.refusals and self.wait_s:
            waited_s = call.at_s - self.refused_at_s
            if waited_s < self._long_enough_s:
                self._has_minimum = False
            if self.refusals > 1 or not 0 < self._long_enough_s < waited_s:
                self._long_enough_s = waited_s
        self.refusals = 0

    def was_too_short(self) -> None:
        """The call after it was refused, and by the known rate it should not have been."""
        self._has_minimum = True

    def grow(self, calls_per_s: float, *, is_other_next: bool) -> None:
        """A refusal states no wait. ``is_other_next``: the next call is another request."""
        is_slow = is_other_next and self.wait_s >= _LONG_BACKOFF_S
        growth = _GROWTH_OTHER if is_slow else _GROWTH
        self.wait_s = min(_MAX_BACKOFF_S, self.wait_s * growth or self._first_s(calls_per_s))

    def _first_s(self, calls_per_s: float) -> float:
        if not self._long_enough_s:
            return MIN_BACKOFF_S
        shortest_s = self._long_enough_s * (_MARGIN if self._has_minimum else 0.5)
        return max(shortest_s, min(MIN_BACKOFF_S, _BACKOFF_CALLS / calls_per_s))
