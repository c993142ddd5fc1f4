"""How many calls may be in flight, where no response states it, learned from refusals (pure)."""

import math
from dataclasses import dataclass

from proxy.pacing.learned_rate import BURST_S
from proxy.pacing.sent_call import SentCall

# By so much each accepted call widens the window after a refusal: what has gathered meanwhile does not leave at once.
_WINDOW_GROWTH = 1 / 4
# This many accepted calls for one more call in flight.
_CALLS_PER_SLOT = 20
# If a rate were the limit, as many calls a second would be accepted as at once: as were in flight at the refusal. Its
# bucket may be full again meanwhile. With so many times as many as that, it is none.
_KNOWN_TIMES = 2.0
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
    _refused_items: float = 0  # of the refused call; infinite after another refusal, which leaves all unknown
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
            self.is_known = self.is_known and self._accepted > _KNOWN_TIMES * self._safe
        self._accepted, self._alike, self._refused_items = 0, 0, call.cost.items

    def begin_again(self) -> None:
        """A call was refused for another reason."""
        self._window, self._accepted, self.is_known = 1.0, 0, False
        self._alike, self._refused_items = 0, math.inf

    def accepted(self, call: SentCall, now_s: float) -> None:
        self._alike += call.cost.items >= self._refused_items
        self._window += _WINDOW_GROWTH
        self._accepted += 1
        if self.is_learned and self._alike > self._least_known(now_s):
            self.is_known = True

    def grow(self, call: SentCall, calm_calls: int) -> None:
        """``call`` was accepted. With ``calm_calls`` accepted in a row the limit was probably raised."""
        if call.in_flight > self._most and not self._is_of_last_burst(call):  # others hang, and don't count
            self._most = self._window = float(call.in_flight)
        if call.in_flight + 1 > self._most:
            self._most += max(1.0, self._accepted / calm_calls) / _CALLS_PER_SLOT

    def _least_known(self, now_s: float) -> float:
        return _KNOWN_TIMES * self._safe * (BURST_S + now_s - self._refused_at_s)

    def _is_of_last_burst(self, call: SentCall) -> bool:
        return call.at_s < self._refused_at_s
