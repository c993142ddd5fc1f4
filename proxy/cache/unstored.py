"""Items that an upstream computed and the store does not have: counted and logged."""

import logging
import time
from collections.abc import Callable

from proxy.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_LOG_EVERY_S = 60.0


class Unstored:
    """Counts items that did not get into the store, and logs the counts at most once a minute."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._counter = metrics.store_unstored_items
        self._clock = clock
        self._logged_at_s = float("-inf")
        self._items: dict[str, int] = {}  # since the last line, by reason

    def add(self, items: int, reason: str) -> None:
        if not items:
            return
        self._counter.labels(reason).inc(items)
        self._items[reason] = self._items.get(reason, 0) + items
        if self._clock() - self._logged_at_s >= _LOG_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Log the counts since the last line."""
        if self._items:
            self._logged_at_s = self._clock()
            reasons = ", ".join(f"{items} ({reason})" for reason, items in self._items.items())
            _log.warning("items not stored: %s", reasons)
            self._items = {}
