"""Short reads of the store that several requests have in common."""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence

from proxy.cache.entry import Entry
from proxy.tasks import TaskSet, log_to

_log = logging.getLogger(__name__)

_Entries = Mapping[bytes, Entry]
_Part = Hashable  # of the store, as of `Store.parts`


class SharedReads:
    """Reads together what requests ask for in one turn of the event loop, or while the store has enough reads to do.

    A request that stops waiting stops neither the read nor the others. No request waits for a part of the store that
    has none of its keys.
    """

    def __init__(
        self,
        read: Callable[[Sequence[bytes], _Entries, float], Awaitable[_Entries]],
        *,
        parts: Callable[[Sequence[bytes]], Mapping[_Part, Sequence[bytes]]],
        max_keys: int,
        max_reads: int,
    ) -> None:
        """``read`` is called with keys, with those of their entries that were in memory before, and with the event loop
        time at which the first of them was asked for. It does not fail because the store does. ``max_keys`` bounds one
        read, ``max_reads`` how many of one part are under way."""
        self._read = read
        self._parts = parts
        self._max_keys = max_keys
        self._max_reads = max_reads
        self._queues: defaultdict[_Part, _Queue] = defaultdict(_Queue)  # of parts that are being read
        self._tasks = TaskSet(log_to(_log, "a read of the store"))

    async def read(self, keys: Sequence[bytes], before: _Entries) -> dict[bytes, Entry]:
        """The entries of ``keys`` in the store. ``before`` are those in memory."""
        waiters = [self._join(part, its, before) for part, its in self._parts(keys).items()]
        found = await waiters[0] if len(waiters) == 1 else _union([await waiter for waiter in waiters])
        return {key: found[key] for key in keys if key in found}

    def _join(self, part: _Part, keys: Sequence[bytes], before: _Entries) -> "asyncio.Future[_Entries]":
        """The result of the read that ``keys`` of one part are added to."""
        queue, loop = self._queues[part], asyncio.get_running_loop()
        shared = queue.open
        if shared is None or len(shared.keys) + len(keys) > self._max_keys:
            shared = queue.open = _SharedRead(loop.time())
            queue.waiting.append(shared)
            self._begin_next(part, queue)
        shared.keys += keys
        if before:
            shared.before = {**before, **shared.before}  # the earliest, since an entry may arrive in between
        waiter: asyncio.Future[_Entries] = loop.create_future()
        shared.waiters.append(waiter)
        return waiter

    def _begin_next(self, part: _Part, queue: "_Queue") -> None:
        if queue.waiting and len(queue.under_way) < self._max_reads:
            shared = queue.waiting.popleft()
            queue.under_way.add(shared)
            self._tasks.start(self._run(part, queue, shared))

    async def _run(self, part: _Part, queue: "_Queue", shared: "_SharedRead") -> None:
        # A new task first runs after everything that was ready when it was made, so the other requests of this turn
        # have added their keys by now.
        if queue.open is shared:
            queue.open = None
        try:
            shared.found = await self._read(list(dict.fromkeys(shared.keys)), shared.before, shared.since_s)
        finally:
            queue.under_way.discard(shared)
            shared.end()
            self._begin_next(part, queue)
            if not queue.under_way:
                self._queues.pop(part, None)

    async def aclose(self) -> None:
        """End the reads. What still waits gets nothing."""
        left: list[_SharedRead] = []
        for queue in self._queues.values():
            left += (*queue.under_way, *queue.waiting)
            queue.waiting.clear()
        await self._tasks.aclose()
        for shared in left:  # a task that is cancelled before its first step does not run at all
            shared.end()


class _Queue:
    """The reads of one part of the store."""

    __slots__ = ("open", "under_way", "waiting")

    def __init__(self) -> None:
        self.open: _SharedRead | None = None  # takes more keys
        self.waiting: deque[_SharedRead] = deque()
        self.under_way: set[_SharedRead] = set()


class _SharedRead:
    __slots__ = ("before", "found", "keys", "since_s", "waiters")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.keys: list[bytes] = []
        self.before: _Entries = {}
        self.found: _Entries = {}
        self.waiters: list[asyncio.Future[_Entries]] = []

    def end(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(self.found)


def _union(parts: Sequence[_Entries]) -> _Entries:
    return {key: entry for part in parts for key, entry in part.items()}
