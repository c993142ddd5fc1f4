"""How many calls may be in flight, where no response states it, learned from refusals (pure)."""

import math
from dataclasses import dataclass

from proxy.pacing.sent_call import SentCall

# By so much each accepted call widens the window after a refusal: what has gathered meanwhile does not leave at once.
_WINDOW_GROWTH = 1 / 4
# This many accepted calls for one more call in flight.
_CALLS_PER_SLOT = 30


@dataclass(slots=True)
class LearnedConcurrency:
    """``is_known``: there is a limit on calls in flight, and no limit on a rate that is as low."""

    is_known: bool = False
    _most: float = math.inf
    _window: float = math.inf  # the calls that may be in flight, as long as few were accepted since a refusal
    _safe: int = 0  # so many were accepted at a time when one more was refused
    _refused_at_s: float = -math.inf
    _accepted: int = 0  # calls since then

    @property
    def is_learned(self) -> bool:
        return math.isfinite(self._most)

    def has_room(self, in_flight: int) -> bool:
        return in_flight + 1 <= min(self._most, self._window)

    def explains(self, call: SentCall, in_flight: int, *, is_probe: bool) -> bool:
        """Whether a refusal of ``call`` may be about the calls in flight. Those that it refuses end at once; what is
        left, ``in_flight``, was accepted. ``is_probe``: it is the first one after another refusal."""
        return self._is_of_last_burst(call) or (in_flight > 0 and call.in_flight > self._safe and not is_probe)

    def refused(self, call: SentCall, in_flight: int, now_s: float) -> None:
        """That explains a refusal. Of several that were in flight together, the first one counts."""
        self._safe = max(1, in_flight)
        self._most, self._window = float(self._safe), max(1.0, in_flight - 1)
        self._accepted = 0
        if not self._is_of_last_burst(call):
            self._refused_at_s = now_s

    def begin_again(self) -> None:
        """A call was refused for another reason."""
        self._window, self._accepted, self.is_known = 1.0, 0, False

    def accepted(self) -> None:
        self._window += _WINDOW_GROWTH
        self._accepted += 1

    def grow(self, call: SentCall, calm_calls: int) -> None:
        """``call`` was accepted. With ``calm_calls`` accepted in a row the limit was probably raised."""
        if call.in_flight + 1 > self._most:
            self._most += max(1.0, self._accepted / calm_calls) / _CALLS_PER_SLOT

    def _is_of_last_burst(self, call: SentCall) -> bool:
        return call.at_s < self._refused_at_s
