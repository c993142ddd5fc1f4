"""How much may be merged into one call, after merged calls have failed (pure)."""

from collections import OrderedDict
from collections.abc import Callable

_MAX_LIMITS, _LIMIT_TTL_S = 1024, 600.0

_Model = tuple[str, str | None]  # an upstream's name, and a model there


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
