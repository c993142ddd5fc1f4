"""Records as the store keeps them: encoded and tagged on the way in, checked and dated on the way out."""

import math
from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

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
        self._ttl_s = ttl_s
        self._store_expires = store_expires
        self._clock = clock
        self._invalid = InvalidRecords(metrics)

    def encode(self, fresh: Mapping[bytes, Record]) -> dict[bytes, bytes]:
        return {key: records.encode(key, record, self._record_key) for key, record in fresh.items()}

    def decode(self, values: Mapping[bytes, bytes]) -> dict[bytes, Record]:
        """The valid records among ``values``. The others are counted, and logged once for each kind of flaw."""
        decoded = {}
        for key, value in values.items():
            try:
                decoded[key] = self._dated(records.decode(key, value, self._record_key))
            except InvalidRecord as error:
                self._invalid.found(key, error.flaw)
        self._invalid.replaced(decoded)  # where one was invalid before, another proxy has replaced it
        return decoded

    def replaced(self, keys: Iterable[bytes]) -> None:
        """This proxy has stored valid records under ``keys``."""
        self._invalid.replaced(keys)

    def _dated(self, record: Record) -> Record:
        """``record`` with an age that is possible by this machine's clock; another machine's clock dated it.

        No record is from the future, and a record that an expiring store still has is not past its TTL. This keeps
        replicas whose clocks differ in agreement on which records exist.
        """
        now_s = self._clock()
        stored_at_s = min(record.stored_at_s, math.floor(now_s))
        if self._ttl_s is not None and self._store_expires:
            oldest_s = now_s - self._ttl_s
            if oldest_s - _MAX_CLOCK_SKEW_S <= stored_at_s < oldest_s:
                stored_at_s = math.ceil(oldest_s)
        elif record.stored_at_s > now_s + _MAX_CLOCK_SKEW_S:
            stored_at_s = 0  # the clock was wrong when it was stored, and nothing else would ever expire the record
        return record if stored_at_s == record.stored_at_s else replace(record, stored_at_s=stored_at_s)
