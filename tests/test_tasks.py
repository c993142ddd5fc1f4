import asyncio
import gc
import logging
import weakref
from collections.abc import Generator
from typing import Any

import pytest

from proxy.tasks import TaskSet, log_to


@pytest.fixture
def errors() -> list[BaseException]:
    return []


@pytest.fixture
def tasks(errors: list[BaseException]) -> TaskSet:
    return TaskSet(errors.append)


async def fail() -> None:
    raise OSError("of the task")


async def forever() -> None:
    await asyncio.Event().wait()


async def test_a_task_that_nobody_refers_to_is_not_collected(tasks: TaskSet) -> None:
    done = asyncio.Event()

    class Unreferenced:
        """Awaitable; nothing but the task that awaits it refers to it, or to the future that it waits for."""

        def __await__(self) -> Generator[Any, None, None]:
            future = asyncio.get_running_loop().create_future()
            references.append(weakref.ref(future))
            yield from future

    async def work() -> None:
        await Unreferenced()
        done.set()

    references: list[weakref.ref[asyncio.Future[None]]] = []
    tasks.start(work())
    await asyncio.sleep(0)
    gc.collect()
    assert len(tasks) == 1
    assert repr(tasks) == "<TaskSet of 1 tasks>"
    (reference,) = references
    future = reference()
    assert future is not None
    future.set_result(None)
    await done.wait()


async def test_the_result_of_a_task_can_be_awaited(tasks: TaskSet) -> None:
    assert await tasks.start(asyncio.sleep(0, "result")) == "result"
    assert not len(tasks)


async def test_an_error_is_handed_on_though_nobody_awaits_the_task(tasks: TaskSet, errors: list[BaseException]) -> None:
    tasks.start(fail())
    await tasks.join()
    assert [str(error) for error in errors] == ["of the task"]


async def test_an_error_is_handed_on_and_raised_where_the_task_is_awaited(
    tasks: TaskSet, errors: list[BaseException]
) -> None:
    with pytest.raises(OSError, match="of the task"):
        await tasks.start(fail())
    assert [str(error) for error in errors] == ["of the task"]


async def test_an_error_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    tasks = TaskSet(log_to(logging.getLogger("proxy.some"), "a write"))
    tasks.start(fail())
    await tasks.join()
    (logged,) = caplog.records
    assert (logged.name, logged.levelname, logged.message) == ("proxy.some", "ERROR", "unexpected error in a write")
    assert "in fail" in caplog.text


async def test_a_task_that_is_cancelled_is_no_error(tasks: TaskSet, errors: list[BaseException]) -> None:
    task = tasks.start(forever())
    await asyncio.sleep(0)
    task.cancel()
    await tasks.join()
    assert task.cancelled()
    assert not errors


async def test_callbacks_of_the_caller_run_after_the_task_has_left(tasks: TaskSet) -> None:
    left: list[int] = []
    task = tasks.start(asyncio.sleep(0))
    task.add_done_callback(lambda _: left.append(len(tasks)))
    await tasks.join()
    assert left == [0]


async def test_joining_waits_for_tasks_that_other_tasks_start(tasks: TaskSet) -> None:
    steps: list[str] = []

    async def second() -> None:
        await asyncio.sleep(0)
        steps.append("second")

    async def first() -> None:
        await asyncio.sleep(0)
        steps.append("first")
        tasks.start(second())

    tasks.start(first())
    await tasks.join()
    assert steps == ["first", "second"]


async def test_joining_nothing_returns_at_once(tasks: TaskSet) -> None:
    await tasks.join()
    await tasks.aclose()


async def test_a_joiner_that_is_cancelled_cancels_the_tasks_and_waits_for_their_end(
    tasks: TaskSet, errors: list[BaseException]
) -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    async def join() -> None:
        try:
            await tasks.join()
        finally:
            steps.append("joined")

    task = tasks.start(work())
    joining = asyncio.create_task(join())
    await asyncio.sleep(0)
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert steps == ["cleaned up", "joined"]
    assert task.cancelled()
    assert not errors


async def test_closing_reports_an_error_in_the_clean_up(tasks: TaskSet, errors: list[BaseException]) -> None:
    async def work() -> None:
        try:
            await forever()
        finally:
            await fail()

    tasks.start(work())
    tasks.start(forever())
    await asyncio.sleep(0)
    await tasks.aclose()
    assert [str(error) for error in errors] == ["of the task"]
    assert not len(tasks)


async def test_a_request_to_cancel_does_not_wait(tasks: TaskSet) -> None:
    task = tasks.start(forever())
    await asyncio.sleep(0)
    tasks.cancel()
    assert not task.done()
    await tasks.join()
    assert task.cancelled()
