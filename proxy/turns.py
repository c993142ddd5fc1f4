"""Large work takes turns with everything else that the event loop does.

In each iteration of the loop, all large work together has one turn of about half a millisecond, however many requests
it is for. So a short request waits for a turn of one large request, not of each.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any, Generic, Self, TypeVar
from weakref import WeakKeyDictionary

from proxy.steps import Steps
from proxy.tasks import TaskSet, log_to

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Item = TypeVar("_Item")

_TURN_S = 0.00015  # a step that has begun is finished, so a turn may take a few times as long
KEYS_A_TURN = 32  # making so many entries, or their records, takes less than half a millisecond
FEW_KEYS = 64  # to look up, to put into memory or to settle so many takes less than a quarter of one


class _Turns:
    """The turns of one event loop, in the order in which they were asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_scheduled = False

    def next(self) -> asyncio.Future[None]:
        turn = self._loop.create_future()
        self._waiting.append(turn)
        self._schedule()
        return turn

    def _schedule(self) -> None:
        if self._waiting and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._give)

    def _give(self) -> None:
        self._is_scheduled = False
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its waiter was cancelled
                turn.set_result(None)
                break
        self._schedule()


_freeing = TaskSet(log_to(_log, "freeing memory"))
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


async def turn() -> None:
    """Wait for the next turn. The caller works for at most half a millisecond before it waits for another."""
    loop = asyncio.get_running_loop()
    if loop not in _turns:
        _turns[loop] = _Turns(loop)
    await _turns[loop].next()


def are_many(keys: Collection[bytes]) -> bool:
    """Whether there are so many keys that the work on them takes a turn of its own."""
    return len(keys) > FEW_KEYS


async def run(steps: Steps[_T]) -> _T:
    """The result of ``steps``. The first turn begins at once."""
    while True:
        ends_s = time.perf_counter() + _TURN_S
        is_over = False
        while not is_over:  # at least one step, however late it is
            try:
                next(steps)
            except StopIteration as end:
                result: _T = end.value
                return result
            is_over = time.perf_counter() >= ends_s
        await turn()


def free(parts: list[Any]) -> None:
    """Empty a list in turns. Freeing tens of megabytes or thousands of objects at once takes milliseconds."""
    _freeing.start(_free(parts))


async def _free(parts: list[Any]) -> None:
    await turn()
    await run(_dropped(parts))


def _dropped(parts: list[Any]) -> Steps[None]:
    while parts:
        parts.pop()
        yield


class _Chunks(Generic[_Item]):
    """A class, since an asynchronous generator takes longer: the event loop keeps a list of those that have begun."""

    __slots__ = ("_items", "_pause", "_size", "_start")

    def __init__(self, items: Sequence[_Item], size: int, pause: Callable[[], Awaitable[None]]) -> None:
        self._items = items
        self._size = size
        self._pause = pause
        self._start = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[_Item]:
        start = self._start
        if start >= len(self._items):
            raise StopAsyncIteration
        if start:
            await self._pause()
        self._start = start + self._size
        return self._items[start : self._start]


def in_turns(items: Sequence[_Item], *, size: int = KEYS_A_TURN) -> AsyncIterator[Sequence[_Item]]:
    """``items`` in chunks of ``size``, each in a turn of its own: one request may need thousands of entries while
    others wait for a hit."""
    return _Chunks(items, size, turn)


def in_iterations(items: Sequence[_Item], *, size: int = KEYS_A_TURN) -> AsyncIterator[Sequence[_Item]]:
    """``items`` in chunks of ``size``, one in each iteration of the loop: for short work that must not wait behind the
    turns of large requests."""
    return _Chunks(items, size, partial(asyncio.sleep, 0))
