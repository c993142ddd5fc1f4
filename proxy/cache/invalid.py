"""Stored values that can't be served: counted, and logged with what their kind means."""

import logging
from collections.abc import Iterable

from proxy.protocol.records import Flaw
from proxy.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_MAX_KEYS = 10_000  # about 100 bytes each
_MEANINGS = {
    Flaw.UNTAGGED: "they have no tag; records that were stored before --record-key-env was set have none",
    Flaw.OTHER_KEY: "they are tagged under another record key, or this proxy has none",
    Flaw.TAG: "they name this proxy's record key, but were not tagged with it: something else writes to the store",
    Flaw.KEY: "they were stored under another key and copied: something else writes to the store",
}


class InvalidRecords:
    """Counts each invalid record once, however often it is read before it is replaced.

    A request reads such a record up to three times: at the look-up, under the lease, and when its write finds the key
    taken. A read-only store keeps it, and every request would count it again.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._counter = metrics.store_invalid_records
        self._known: dict[bytes, None] = {}  # oldest first
        self._logged: set[Flaw] = set()

    def found(self, key: bytes, flaw: Flaw) -> None:
        if key in self._known:
            return
        if len(self._known) >= _MAX_KEYS:
            del self._known[next(iter(self._known))]  # it is counted again if it is read again
        self._known[key] = None
        self._counter.labels(flaw.value).inc()
        if flaw not in self._logged:
            self._logged.add(flaw)
            meaning = _MEANINGS.get(flaw, "they are damaged, or not records of this version")
            _log.warning(
                "the store has invalid records (%s): %s; they are misses and are replaced"
                " (said once; counted in metrics)",
                flaw.value,
                meaning,
            )

    def replaced(self, keys: Iterable[bytes]) -> None:
        """The store has other values under ``keys`` now."""
        if self._known:
            for key in keys:
                self._known.pop(key, None)
