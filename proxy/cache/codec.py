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
        self._expires_after_s = ttl_s if store_expires else None
        self._clock = clock
        self._invalid = InvalidRecords(metrics)

    def encode(self, fresh: Mapping[bytes, Record]) -> dict[bytes, bytes]:
        return {key: records.encode(key, record, self._record_key) for key, record in fresh.items()}

    def decode(self, values: Mapping[bytes, bytes]) -> dict[bytes, Record]:
        """The valid records among ``values``. The others are counted, and logged once for each kind of flaw."""
        decoded = {}
        decode, record_key = records.decode, self._record_key
        now_s = self._clock()
        oldest_s = -math.inf if self._expires_after_s is None else now_s - self._expires_after_s
        for key, value in values.items():
            try:
                record = decode(key, value, record_key)
            except InvalidRecord as error:
                self._invalid.found(key, error.flaw)
            else:
                is_plausible = oldest_s <= record.stored_at_s <= now_s
                decoded[key] = record if is_plausible else self._dated(record, now_s, oldest_s)
        self._invalid.replaced(decoded)  # where one was invalid before, another proxy has replaced it
        return decoded

    def replaced(self, keys: Iterable[bytes]) -> None:
        """This proxy has stored valid records under ``keys``."""
        self._invalid.replaced(keys)

    def _dated(self, record: Record, now_s: float, oldest_s: float) -> Record:
        """``record`` with an age that is possible by this machine's clock; another machine's clock dated it.

        No record is from the future, and a record that an expiring store still has is not past its TTL. This keeps
        replicas whose clocks differ in agreement on which records exist.
        """
        stored_at_s = min(record.stored_at_s, math.floor(now_s))
        if self._expires_after_s is not None:
            if oldest_s - _MAX_CLOCK_SKEW_S <= stored_at_s < oldest_s:
                stored_at_s = math.ceil(oldest_s)
        elif record.stored_at_s > now_s + _MAX_CLOCK_SKEW_S:
            stored_at_s = 0  # the clock was wrong when it was stored, and nothing else would ever expire the record
        return record if stored_at_s == record.stored_at_s else replace(record, stored_at_s=stored_at_s)
