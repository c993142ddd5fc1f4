"""Records on their way into the store: how many bytes of them wait, and how many items did not get there."""

import asyncio
import logging
import time
from collections.abc import Callable

from proxy.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_LOG_EVERY_S = 60.0


class Backlog:
    """The bytes of writes that the store was given and has not finished.

    Above ``max_bytes`` new upstream calls wait, since their responses would have to be held as well. Calls that were
    under way before bring what they bring, so the bound is exceeded by at most the responses of
    ``--upstream-concurrency`` calls. A store that finishes no write for ``stall_s`` is taken for hung: calls no longer
    wait for it.
    """

    def __init__(self, *, max_bytes: int, stall_s: float) -> None:
        self._max_bytes = max_bytes
        self._stall_s = stall_s
        self._is_stalled = False
        self._progress = asyncio.Event()  # set when the next write is finished, and then replaced
        self.pending_bytes = 0

    def __repr__(self) -> str:
        return f"<Backlog {self.pending_bytes} of {self._max_bytes} bytes{', stalled' if self._is_stalled else ''}>"

    @property
    def refuses(self) -> bool:
        """Whether one more write must not be held: too much waits, for a store that seems to hang."""
        return self._is_stalled and self._is_full

    @property
    def _is_full(self) -> bool:
        return self.pending_bytes > self._max_bytes

    def began(self, size: int) -> None:
        self.pending_bytes += size

    def ended(self, size: int) -> None:
        """A write has succeeded or failed, and is not held any more."""
        self.pending_bytes -= size
        self._is_stalled = False
        self._progress.set()
        self._progress = asyncio.Event()

    async def room(self) -> None:
        """Wait until there is room for what one more upstream call brings, or the store seems to hang."""
        while self._is_full and not self._is_stalled:
            progress = self._progress
            try:
                async with asyncio.timeout(self._stall_s):
                    await progress.wait()
            except TimeoutError:
                self._is_stalled = progress is self._progress  # no write has ended at the same moment


class Unstored:
    """Items that were paid for and did not get into the store: counted, and logged once a minute at most."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._counter = metrics.store_unstored_items
        self._clock = clock
        self._logged_at_s = float("-inf")
        self._items: dict[str, int] = {}  # since then, by reason

    def add(self, items: int, reason: str) -> None:
        if not items:
            return
        self._counter.labels(reason).inc(items)
        self._items[reason] = self._items.get(reason, 0) + items
        if self._clock() - self._logged_at_s >= _LOG_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Log what was counted since the last line."""
        if self._items:
            self._logged_at_s = self._clock()
            reasons = ", ".join(f"{items} ({reason})" for reason, items in self._items.items())
            _log.warning("items that were answered and not stored: %s", reasons)
            self._items = {}
