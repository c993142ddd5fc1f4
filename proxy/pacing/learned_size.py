"""How many items one call may have, where no response states it, learned from refusals (pure)."""

import math
from dataclasses import dataclass

# After a refusal little is merged: many small calls find a limit sooner than few large ones, and a query waits less
# behind them. Then the next call may have this many times as many items, if the last was half as large at least.
_LEAST_MERGED, _SMALL = 4, 32
_LARGER, _SLIGHTLY_LARGER = 1.1, 1.02
# So many refusals in a row of calls that are larger than any accepted one are about their size.
_TOO_LARGE = 3
# A limit may have been learned from refusals for another reason. After this many calls of its size it is doubled, and
# each time that this was wrong, after twice as many.
_CALLS_TO_GROW, _MOST_CALLS_TO_GROW = 4, 1024
# What is learned before any call was accepted is a guess: the refusals may have had nothing to do with the size. Then
# it is doubled after each call of its size, until one is refused.


@dataclass(slots=True)
class LearnedSize:
    largest: int = 0  # items of an accepted call
    max_items: float = math.inf
    max_merged: float = math.inf  # of a call of several requests
    _refusals: int = 0  # of larger calls, in a row
    _refused_at_s: float = -math.inf
    _full_calls: int = 0
    _calls_to_grow: int = _CALLS_TO_GROW
    _has_grown: bool = False
    _is_guess: bool = False

    def accepted(self, items: int) -> None:
        if items > self.largest:
            self.largest, self._refusals = items, 0
        if 2 * items >= self.max_merged:
            self.max_merged *= _LARGER if self.max_merged < _SMALL else _SLIGHTLY_LARGER
        if items >= self.max_items:
            self._full_calls += 1
            if self._is_guess or self._full_calls >= self._calls_to_grow:
                self.max_items, self._full_calls, self._has_grown = 2 * self.max_items, 0, True

    def refused(self, items: int, *, at_s: float, now_s: float, is_alone: bool) -> None:
        """A call that was sent at ``at_s`` was refused at ``now_s``; ``is_alone``: no other was sent lately."""
        if items > self.largest:
            self.max_merged = max(_LEAST_MERGED, self.largest)
            if at_s >= self._refused_at_s:
                self._refusals, self._refused_at_s = self._refusals + 1, now_s
        is_repeated = self.largest > 0 and (self._is_guess or self._refusals >= _TOO_LARGE)
        if items > 1 and (is_alone or (is_repeated and items > self.largest)):
            known = self.largest if items > self.largest else 1
            self.max_items = min(self.max_items, max(known, items // 2))
            if self._has_grown and not self._is_guess:
                self._calls_to_grow = min(2 * self._calls_to_grow, _MOST_CALLS_TO_GROW)
            self._refusals, self._full_calls, self._has_grown = 0, 0, False
            self._is_guess = not self.largest
