"""What merged calls that failed have taught: how much one more attempt may cost, and how much may be merged (pure)."""

from collections import OrderedDict
from collections.abc import Callable

_BURST = 16.0
_PER_REQUEST = 0.1
_MAX_LIMITS, _LIMIT_TTL_S = 1024, 600.0

_Model = tuple[str, str | None]  # an upstream's name, and a model there


class RetryBudget:
    """How many calls that fail may be made on top of the clients' own requests while nothing succeeds.

    A merged call that fails with a 5xx or a cut connection may have failed because of one of its items, or because the
    upstream is out of order. Asking for the others alone finds out; in an outage it must not multiply the load: each
    request adds a tenth of a call to the budget, each further failure takes one, and a success fills it.
    """

    def __init__(self) -> None:
        self._left = _BURST

    def __repr__(self) -> str:
        return f"<RetryBudget {self._left:.1f} left>"

    @property
    def calls(self) -> int:
        """How many further calls may be made now."""
        return int(self._left)

    def requested(self) -> None:
        self._left = min(_BURST, self._left + _PER_REQUEST)

    def succeeded(self) -> None:
        self._left = _BURST

    def failed(self) -> None:
        self._left = max(0.0, self._left - 1)


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
