"""Records as the store keeps them: encoded and tagged on the way in, checked and dated on the way out."""

import math
from collections.abc import Callable, Iterable, Mapping

from proxy.cache.entry import Entry
from proxy.cache.invalid import InvalidRecords
from proxy.protocol import records
from proxy.protocol.records import InvalidRecord, Record, RecordKey
from proxy.telemetry.metrics import Metrics

# The most that the clocks of two replicas may differ: a local time taken for UTC. A record that is past its TTL by more
# than this was stored under a longer TTL, or under none.
_MAX_CLOCK_SKEW_S = 24 * 3600.0


class RecordCodec:
    def __init__(
        self,
        metrics: Metrics,
        *,
        record_key: RecordKey | None,
        ttl_s: float | None,
        store_expires: bool,
        clock: Callable[[], float],
    ) -> None:
        """``store_expires``: the store itself drops values that are older than ``ttl_s``."""
        self._record_key = record_key
        self._expires_after_s = ttl_s if store_expires else None
        self._clock = clock
        self._invalid = InvalidRecords(metrics)

    def encode(self, fresh: Mapping[bytes, Record]) -> dict[bytes, bytes]:
        return {key: records.encode(key, record, self._record_key) for key, record in fresh.items()}

    def decode(self, values: Mapping[bytes, bytes]) -> dict[bytes, Entry]:
        """Entries of the valid records among ``values``. The others are counted, and logged once for each kind of
        flaw."""
        decoded = {}
        unpack, entry_of, record_key = records.unpack, Entry.of_fields, self._record_key
        now_s = self._clock()
        oldest_s = -math.inf if self._expires_after_s is None else now_s - self._expires_after_s
        for key, value in values.items():
            try:
                fields = unpack(key, value, record_key)
            except InvalidRecord as error:
                self._invalid.found(key, error.flaw)
            else:
                if not oldest_s <= fields.stored_at_s <= now_s:
                    fields.stored_at_s = self._plausible(fields.stored_at_s, now_s, oldest_s)
                decoded[key] = entry_of(fields)
        self._invalid.replaced(decoded)  # if one was invalid before, another proxy has replaced it
        return decoded

    def replaced(self, keys: Iterable[bytes]) -> None:
        """This proxy has stored valid records under ``keys``."""
        self._invalid.replaced(keys)

    def _plausible(self, dated_s: int, now_s: float, oldest_s: float) -> int:
        """Correct the time ``dated_s``, which another machine's clock gave a record, to one that this clock allows.

        No record is from the future, and no record in an expiring store is past its TTL. So replicas whose clocks
        differ agree on which records exist.
        """
        stored_at_s = min(dated_s, math.floor(now_s))
        if self._expires_after_s is not None:
            if oldest_s - _MAX_CLOCK_SKEW_S <= stored_at_s < oldest_s:
                stored_at_s = math.ceil(oldest_s)
        elif dated_s > now_s + _MAX_CLOCK_SKEW_S:
            stored_at_s = 0  # the clock was wrong when it was stored, and nothing else would ever expire the record
        return stored_at_s
