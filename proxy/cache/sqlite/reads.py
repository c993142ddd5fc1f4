"""Reads of concurrent requests, merged: keys asked for while the thread reads are read together next."""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from proxy.cache.shared_read import SharedRead, wait_for
from proxy.cache.sqlite.file import DatabaseThread
from proxy.errors import StoreError

_Values = dict[bytes, bytes]


class MergedReads:
    def __init__(
        self,
        thread: DatabaseThread,
        select: Callable[[sqlite3.Connection, Sequence[bytes]], _Values],
        *,
        max_keys: int,
    ) -> None:
        """``select`` is called in ``thread`` with at most ``max_keys`` keys. A request for thousands of keys begins a
        read when the one before has ended, so that reads of other requests run in between."""
        self._thread = thread
        self._select = select
        self._max_keys = max_keys
        self._waiting: deque[_Read] = deque()
        self._running = 0

    async def get(self, keys: Sequence[bytes], *, timeout_s: float) -> _Values:
        """The values of ``keys`` that have one. Raises `StoreError`."""
        now = asyncio.get_running_loop().time
        end_s = now() + timeout_s
        found: _Values = {}
        for start in range(0, len(keys), self._max_keys):
            some = keys[start : start + self._max_keys]
            reads = self._add(some)
            await wait_for(reads, timeout_s=max(0.0, end_s - now()))
            for read in reads:
                if read.failure is not None:
                    raise StoreError(read.failure.reason, str(read.failure), found=found) from read.failure
                if not read.is_done:
                    raise StoreError("timeout", f"no result in {timeout_s * 1000:.0f} ms", found=found)
                if len(reads) == 1 and len(read.keys) == len(keys):
                    return read.values  # they are this request's alone
                found.update((key, read.values[key]) for key in some if key in read.values)
        return found

    def _add(self, keys: Sequence[bytes]) -> list["_Read"]:
        """Add ``keys`` to reads that begin after this turn of the event loop. Returns these reads."""
        reads, rest = [], keys
        while rest:
            if not self._waiting or len(self._waiting[-1].keys) >= self._max_keys:
                self._waiting.append(_Read())
            read = self._waiting[-1]
            reads.append(read)
            rest = read.take(rest, self._max_keys)
        asyncio.get_running_loop().call_soon(self._start)
        return reads

    def _start(self) -> None:
        """Start reads, unless more keys may be added to them while others run."""
        while self._waiting and (not self._running or len(self._waiting[0].keys) >= self._max_keys):
            read = self._waiting.popleft()
            self._running += 1
            future = self._thread.submit(self._run, read)
            future.add_done_callback(partial(self._hand_over, asyncio.get_running_loop(), read))

    def _run(self, connection: sqlite3.Connection, read: "_Read") -> _Values:
        """Called by the thread."""
        return self._select(connection, list(dict.fromkeys(read.keys))) if read.is_wanted else {}

    def _hand_over(self, loop: asyncio.AbstractEventLoop, read: "_Read", future: "Future[_Values]") -> None:
        """Called by the thread."""
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._ended, read, future)

    def _ended(self, read: "_Read", future: "Future[_Values]") -> None:
        self._running -= 1
        self._start()
        try:
            read.values = future.result()
        except StoreError as failure:
            read.failure = failure
        finally:
            read.end()


class _Read(SharedRead[bytes]):
    """A read of several keys, and its result."""

    __slots__ = ("failure", "values")

    def __init__(self) -> None:
        super().__init__()
        self.values: _Values = {}
        self.failure: StoreError | None = None
