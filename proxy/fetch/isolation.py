"""Limits after merged calls have failed: on further attempts, and on how much is merged (pure)."""

from collections import OrderedDict
from collections.abc import Callable

# At most so many attempts after failures, to which each request adds a tenth of one. Extra calls are attempts beyond
# what merging saved.
_ATTEMPTS, _ATTEMPTS_PER_REQUEST = 16.0, 0.1
_EXTRA, _EXTRA_PER_REQUEST = 2.0, 0.05
_MAX_LIMITS, _LIMIT_TTL_S = 1024, 600.0

_Model = tuple[str, str | None]  # an upstream's name, and a model there


class RetryBudget:
    """How many more calls may be made after some have failed, while none succeeds.

    A call that fails with a 5xx or a broken connection may have failed because of one of its items, or because the
    upstream is down. Smaller calls find out; in an outage they must not multiply the load. Attempts after a merged call
    are free up to the calls that merging saved. All others are extra calls: from forty requests on, an upstream that
    fails every call receives at most a tenth more calls than there are requests. A success restores both.
    """

    def __init__(self) -> None:
        self._attempts, self._extra = _ATTEMPTS, _EXTRA

    def __repr__(self) -> str:
        return f"<RetryBudget {self._attempts:.1f} left, {self._extra:.2f} extra>"

    def calls(self, saved: int = 0) -> int:
        """How many further calls may be made now, if merging ``saved`` so many."""
        return int(min(self._attempts, saved + self._extra))

    def requested(self) -> None:
        self._attempts = min(_ATTEMPTS, self._attempts + _ATTEMPTS_PER_REQUEST)
        self._extra = min(_EXTRA, self._extra + _EXTRA_PER_REQUEST)

    def succeeded(self) -> None:
        self._attempts, self._extra = _ATTEMPTS, _EXTRA

    def spend(self, calls: int, saved: int = 0) -> None:
        """So many calls are made. They count as failed until one succeeds."""
        self._attempts = max(0.0, self._attempts - calls)
        self._extra = max(0.0, self._extra - max(0, calls - saved))


class MergeLimits:
    """How many items may be merged into one call of an upstream's model, after merging has failed.

    If a merged call fails and then every part succeeds alone, it was too large, or the upstream accepts one text and no
    list: from then on half as many items are merged, down to one. A 5xx may be a coincidence, so it takes two in a row.
    Limits expire after ten minutes.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._limits: OrderedDict[_Model, tuple[int, float]] = OrderedDict()
        self._suspects: set[_Model] = set()

    def __repr__(self) -> str:
        return f"<MergeLimits of {len(self._limits)} models>"

    def items(self, upstream: str, model: str | None, usual: int) -> int:
        """The number of items that may be merged, at most ``usual``."""
        limit, until_s = self._limits.get((upstream, model), (usual, 0.0))
        return min(usual, limit) if self._clock() < until_s else usual

    def merging_failed(self, upstream: str, model: str | None, items: int, *, is_certain: bool) -> None:
        """A call of ``items`` merged items failed, and all its parts succeeded alone; ``is_certain``: with a 4xx."""
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
