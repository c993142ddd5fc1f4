"""Background tasks: kept until they end, their failures reported."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class TaskSet:
    """Background tasks of one kind, from their start to their end.

    The event loop keeps only weak references to tasks, so the set keeps strong ones. A task that ends with an exception
    is reported to ``on_error``, whether or not another task awaits it too. A cancelled task is not an error.
    """

    def __init__(self, on_error: Callable[[BaseException], object]) -> None:
        """``on_error`` is called in the event loop and must not raise. `log_to` makes one that logs."""
        self._on_error = on_error
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<TaskSet of {len(self._tasks)} tasks>"

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, coroutine: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """Run ``coroutine`` in a task, which leaves the set when it ends.

        Callbacks that the caller adds to the task run after it has left the set.
        """
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)

    async def join(self) -> None:
        """Wait until no task is left, including tasks that are started during the wait.

        If the waiting is cancelled, all tasks are cancelled and awaited, and `CancelledError` is raised then.
        """
        try:
            await self._wait()
        except asyncio.CancelledError:
            await self.aclose()
            raise

    def cancel(self) -> None:
        """Request the cancellation of every task. They end at a later turn of the event loop."""
        for task in self._tasks:
            task.cancel()

    async def aclose(self) -> None:
        """Cancel every task and wait for its end."""
        self.cancel()
        await self._wait()

    async def _wait(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)  # does not raise their exceptions; if it is cancelled, they are not


def log_to(log: logging.Logger, what: str) -> Callable[[BaseException], None]:
    """An ``on_error`` that logs the traceback; ``what`` names the failed work, as in "an upstream call"."""

    def on_error(error: BaseException) -> None:
        log.error("unexpected error in %s", what, exc_info=error)

    return on_error
