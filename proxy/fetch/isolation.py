"""What merged calls that failed have taught: how much one more attempt may cost, and how much may be merged (pure)."""

from collections import OrderedDict
from collections.abc import Callable

# Attempts, and how many of them may be on top of one for each request; and what each request adds to these.
_ATTEMPTS, _ATTEMPTS_PER_REQUEST = 16.0, 0.1
_EXTRA, _EXTRA_PER_REQUEST = 2.0, 0.05
_MAX_LIMITS, _LIMIT_TTL_S = 1024, 600.0

_Model = tuple[str, str | None]  # an upstream's name, and a model there


class RetryBudget:
    """How many more calls may be made after some have failed, while nothing succeeds.

    A call that fails with a 5xx or a cut connection may have failed because of one of its items, or because the
    upstream is out of order. Asking again for less finds out; in an outage it must not multiply the load. Attempts
    after a merged call are free up to what merging saved. All others are extra calls: from forty requests on, an
    upstream that fails every call sees at most a tenth more calls than there are requests. A success restores both.
    """

    def __init__(self) -> None:
        self._attempts, self._extra = _ATTEMPTS, _EXTRA

    def __repr__(self) -> str:
        return f"<RetryBudget {self._attempts:.1f} left, {self._extra:.2f} extra>"

    def calls(self, saved: int = 0) -> int:
        """How many further calls may be made now, where merging ``saved`` so many."""
        return int(min(self._attempts, saved + self._extra))

    def requested(self) -> None:
        self._attempts = min(_ATTEMPTS, self._attempts + _ATTEMPTS_PER_REQUEST)
        self._extra = min(_EXTRA, self._extra + _EXTRA_PER_REQUEST)

    def succeeded(self) -> None:
        self._attempts, self._extra = _ATTEMPTS, _EXTRA

    def spend(self, calls: int, saved: int = 0) -> None:
        """So many calls are made, which fail until shown otherwise."""
        self._attempts = max(0.0, self._attempts - calls)
        self._extra = max(0.0, self._extra - max(0, calls - saved))


class MergeLimits:
    """How many items may be merged into one call of an upstream's model, where merging has failed.

    A merged call that fails, and of which every part then succeeds alone, was too large, or the upstream takes one text
    and no list: half as many are merged from then on, down to one. A 5xx may have been chance, so it takes two in a
    row. Limits are forgotten after ten minutes.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._limits: OrderedDict[_Model, tuple[int, float]] = OrderedDict()
        self._suspects: set[_Model] = set()

    def __repr__(self) -> str:
        return f"<MergeLimits of {len(self._limits)} models>"

    def items(self, upstream: str, model: str | None, usual: int) -> int:
        """Items that may be merged, at most ``usual``."""
        limit, until_s = self._limits.get((upstream, model), (usual, 0.0))
        return min(usual, limit) if self._clock() < until_s else usual

    def merging_failed(self, upstream: str, model: str | None, items: int, *, is_certain: bool) -> None:
        """A call of ``items`` merged items failed, and all of its parts succeeded alone; ``is_certain``: by a 4xx."""
        name = upstream, model
        if not is_certain and name not in self._suspects:
            if len(self._suspects) >= _MAX_LIMITS:
                self._suspects.clear()
            self._suspects.add(name)
            return
        self._limits[name] = max(1, min(items // 2, self.items(upstream, model, items))), self._clock() + _LIMIT_TTL_S
        self._limits.move_to_end(name)
        if len(self._limits) > _MAX_LIMITS:
            self._limits.popitem(last=False)

    def merging_worked(self, upstream: str, model: str | None) -> None:
        self._suspects.discard((upstream, model))
