"""The store as the cache uses it: bounded in time, behind circuit breakers, and raising no `StoreError`."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from proxy.breaker import Attempt, Breaker, State
from proxy.cache.backlog import Backlog
from proxy.cache.lease import Lease
from proxy.cache.store import COOLDOWN_S, MAX_FAILURES, NOTHING, NoStore, Store
from proxy.cache.unstored import Unstored
from proxy.errors import StoreError
from proxy.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 2.0
_PROBE_KEY = bytes(32)  # of no item
# Reading and unpacking a record takes about 20 µs of this process, which may be busy with several batches.
_TIMEOUT_PER_KEY_S = 0.00025
# Unfinished writes, above which new upstream calls wait.
_MAX_PENDING_BYTES = 64 * 1024**2
# More than SQLite takes for one large transaction on a slow disk.
_STALL_S = 2.0


class Found(NamedTuple):
    values: Mapping[bytes, bytes]
    is_complete: bool  # whether the store has no value for the other keys; if not, it may have


class Written(NamedTuple):
    """The store's reply to a write. Keys in neither may or may not have been written."""

    existing: Mapping[bytes, bytes]  # values that were there before, and still are
    accepted: Collection[bytes]


class GuardedStore:
    def __init__(self, store: Store, metrics: Metrics, *, ttl_s: float | None, timeout_s: float) -> None:
        self._store = store
        self._metrics = metrics
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self.is_absent = isinstance(store, NoStore)
        self.has_leases = store.has_leases
        # A full or read-only Redis fails every write and serves every read, so each direction has its own circuit.
        self._breakers = {
            operation: Breaker(
                max_failures=MAX_FAILURES,
                cooldown_s=COOLDOWN_S,
                clock=time.monotonic,
                on_change=partial(self._on_breaker, operation),
            )
            for operation in ("read", "write")
        }
        self.backlog = Backlog(max_bytes=_MAX_PENDING_BYTES, stall_s=_STALL_S)
        metrics.store_pending_bytes.set_function(lambda: self.backlog.pending_bytes)
        self._unstored = Unstored(metrics)
        self._was_down = False  # the probe failed, and no read has succeeded since
        self._last_failure = ""

    @property
    def is_down(self) -> bool:
        """Whether the circuit refuses reads or writes now."""
        return any(breaker.refuses for breaker in self._breakers.values())

    @property
    def has_failed_read(self) -> bool:
        """Whether the latest read failed, so that it is not worth waiting for a write."""
        return self._breakers["read"].has_recent_failure

    def timeout_for_s(self, keys: Collection[bytes]) -> float:
        """Large batches get more: keys that can't be read in time are fetched upstream, which takes longer still."""
        return self._timeout_s + len(keys) * _TIMEOUT_PER_KEY_S

    async def probe(self) -> None:
        """Log a store that does not work at start-up, before low hit rates show it."""
        try:
            await self._store.get_many([_PROBE_KEY], timeout_s=_PROBE_TIMEOUT_S)
        except StoreError as error:
            self._was_down = True
            _log.warning(
                "store not available (%s: %s); continuing without it, retrying with each request", error.reason, error
            )

    async def get(self, keys: Sequence[bytes], *, waited_s: float = 0.0) -> Found:
        """``waited_s`` of the timeout have passed."""
        attempt = self._breakers["read"].attempt()
        if attempt is None:
            self._metrics.store_errors.labels("read", "open").inc()
            return Found({}, is_complete=False)
        started = time.perf_counter()
        with attempt:
            try:
                timeout_s = max(0.0, self.timeout_for_s(keys) - waited_s)
                values = await self._store.get_many(keys, timeout_s=timeout_s)
            except StoreError as error:
                self._count_failure("read", error, attempt)
                return Found(error.found, is_complete=False)  # values that arrived before the failure are valid
            finally:
                self._metrics.store_seconds["read"].observe(time.perf_counter() - started)
            attempt.succeeded()
        if self._was_down:
            self._was_down = False
            _log.warning("store available")
        return Found(values, is_complete=True)

    def attempt_write(self, items: int, *, is_repeated: bool) -> Attempt | None:
        """Permission for one `put`. If there is none, the items are counted as not stored, unless they were counted
        before and the write is repeated."""
        attempt = self._breakers["write"].attempt()
        if attempt is None:
            reason = "open"
        elif self.backlog.refuses:
            attempt.end()
            reason = "busy"
            self._metrics.store_seconds["write"].observe(0.0)  # counted as a write that failed at once
        else:
            return attempt
        self._metrics.store_errors.labels("write", reason).inc()
        self._unstored.add(0 if is_repeated else items, reason)
        return None

    async def put(
        self,
        values: Mapping[bytes, bytes],
        attempt: Attempt,
        *,
        overwrite: bool,
        is_repeated: bool,
        invalid: Mapping[bytes, bytes] = NOTHING,
    ) -> Written:
        """Write ``values`` as `Store.put_many` does, as far as the store can. The caller ends ``attempt``."""
        started = time.perf_counter()
        lost, reason = len(values), "stopped"
        try:
            existing = await self._store.put_many(values, ttl_s=self._ttl_s, overwrite=overwrite, invalid=invalid)
            attempt.succeeded()
            lost = 0
        except StoreError as error:
            self._count_failure("write", error, attempt)
            lost, reason = len(values) - len(error.found) - len(error.accepted), error.reason
            return Written(error.found, error.accepted)
        finally:
            self._metrics.store_seconds["write"].observe(time.perf_counter() - started)
            self._unstored.add(0 if is_repeated else lost, reason)
        return Written(existing, values.keys() - existing.keys())

    def lease(self) -> Lease:
        return Lease(self._store, self._breakers, timeout_s=self._timeout_s)

    def _count_failure(self, operation: str, error: StoreError, attempt: Attempt) -> None:
        self._metrics.store_errors.labels(operation, error.reason).inc()
        # A pool without a free connection, or a partial result, shows that the store is up and has a lot to do. One
        # failed node of a cluster is no reason to stop using the others.
        if error.reason != "busy" and not error.is_partial:
            self._last_failure = f"{error.reason}: {error}"
            attempt.failed()

    def _on_breaker(self, operation: str, state: State, before: State) -> None:
        self._metrics.breaker(f"store_{operation}", state.value)
        if before is State.CLOSED:  # once, and not with each probe that fails
            _log.warning(
                "circuit open for store %ss (%s); probing every %g s", operation, self._last_failure, COOLDOWN_S
            )
        elif state is State.CLOSED:
            _log.warning("circuit closed for store %ss", operation)

    def log_unstored(self) -> None:
        self._unstored.flush()

    async def aclose(self) -> None:
        await self._store.aclose()
