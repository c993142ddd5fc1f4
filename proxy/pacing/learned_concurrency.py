"""How many calls may be in flight, where no response states it, learned from refusals (pure)."""

import math
from dataclasses import dataclass

from proxy.pacing.sent_call import SentCall

# By so much each accepted call widens the window after a refusal: what has gathered meanwhile does not leave at once.
_WINDOW_GROWTH = 1 / 4
# This many accepted calls for one more call in flight.
_CALLS_PER_SLOT = 20
# So many calls as large as the refused one, and so many times as many as may be in flight, were accepted since then: no
# rate is as low.
_KNOWN_CALLS, _KNOWN_TURNS = 8, 2
# If no call has ended for several times as long as one takes, those in flight hang, and one more is tried.
_PATIENCE_CALLS, _MIN_PATIENCE_S, _UNKNOWN_PATIENCE_S = 4.0, 1.0, 4.0
# So many refusals in a row, while no other call is in flight, may be due to other replicas.
_MOST_IN_A_ROW = 3


@dataclass(slots=True)
class LearnedConcurrency:
    """``is_known``: there is a limit on calls in flight, and no limit on a rate that is as low."""

    is_known: bool = False
    _most: float = math.inf
    _window: float = math.inf  # the calls that may be in flight, as long as few were accepted since a refusal
    _safe: int = 0  # so many were accepted at a time when one more was refused
    _refused_at_s: float = -math.inf
    _accepted: int = 0  # calls since then
    _refused_items: int = 0
    _alike: int = 0  # of them, that were as large as what was refused
    call_s: float = 0.0  # how long the last accepted call took; 0: unknown

    @property
    def is_learned(self) -> bool:
        return math.isfinite(self._most)

    @property
    def patience_s(self) -> float:
        """How long to wait for the end of a call in flight, if there is no room for one more."""
        return max(_MIN_PATIENCE_S, _PATIENCE_CALLS * self.call_s) if self.call_s else _UNKNOWN_PATIENCE_S

    def has_room(self, in_flight: int) -> bool:
        return in_flight + 1 <= min(self._most, self._window)

    def explains(self, call: SentCall, in_flight: int, *, is_probe: bool, in_a_row: int) -> bool:
        """Whether a refusal of ``call`` may be about the calls in flight. Those that it refuses end at once; what is
        left, ``in_flight``, was accepted. ``is_probe``: it is the first one after another refusal. ``in_a_row``: so
        many refusals."""
        if self.is_known and not in_flight:  # another replica has all of them
            return in_a_row <= _MOST_IN_A_ROW
        is_more = call.in_flight > self._safe or self.is_known
        return self._is_of_last_burst(call) or (in_flight > 0 and is_more and not is_probe)

    def refused(self, call: SentCall, in_flight: int, now_s: float) -> None:
        """That explains a refusal. Of several that were in flight together, the first one counts."""
        self._safe = int(max(1, min(in_flight, self._most)))  # some of what is in flight may have been sent since
        self._most, self._window = float(self._safe), max(1.0, self._safe - 1)
        if not self._is_of_last_burst(call):
            self._refused_at_s = now_s
            self.is_known = self.is_known and self._accepted > _KNOWN_TURNS * self._safe
        self._accepted, self._alike, self._refused_items = 0, 0, call.cost.items

    def begin_again(self) -> None:
        """A call was refused for another reason."""
        self._most, self._window, self._accepted, self._alike, self.is_known = math.inf, 1.0, 0, 0, False

    def accepted(self, call: SentCall) -> None:
        self._alike += call.cost.items >= self._refused_items
        self._window += _WINDOW_GROWTH
        self._accepted += 1
        if self._alike > max(_KNOWN_CALLS, _KNOWN_TURNS * self._most):
            self.is_known = True

    def grow(self, call: SentCall, calm_calls: int) -> None:
        """``call`` was accepted. With ``calm_calls`` accepted in a row the limit was probably raised."""
        if call.in_flight > self._most and not self._is_of_last_burst(call):  # others hang, and don't count
            self._most = self._window = float(call.in_flight)
        if call.in_flight + 1 > self._most:
            self._most += max(1.0, self._accepted / calm_calls) / _CALLS_PER_SLOT

    def _is_of_last_burst(self, call: SentCall) -> bool:
        return call.at_s < self._refused_at_s
