"""An exchange that has begun before its request was parsed ends once, whoever ends it."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from aiohttp.web import Response, StreamResponse

from proxy.embeddings.exchange import BegunExchange
from proxy.errors import Overloaded, ProxyError

EXCHANGE: Any = object()


class Begun:
    """One, with what it depends on: ``answer`` is its response once a test has set it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[StreamResponse] = loop.create_future()
        self.ends = 0
        self.task: asyncio.Task[StreamResponse | None] = loop.create_task(self._run())
        self.exchange = BegunExchange(EXCHANGE, self.task, self._end)

    async def _run(self) -> StreamResponse | None:
        return await self.exchange.run(self.answer)

    def _end(self) -> None:
        self.ends += 1


async def until_run(begun: Begun) -> None:
    """Until it waits for its response."""
    while not begun.answer._callbacks:
        await asyncio.sleep(0)


async def test_the_caller_gets_the_response_and_ends_the_exchange() -> None:
    begun, response = Begun(), Response()
    begun.answer.set_result(response)
    assert await begun.task is response
    assert begun.ends == 0
    assert begun.exchange.exchange is EXCHANGE


async def test_an_error_is_for_the_handler() -> None:
    begun, error = Begun(), Overloaded("too many")
    begun.answer.set_exception(error)
    assert await begun.task is None
    with pytest.raises(Overloaded) as raised:
        await begun.exchange.take()
    assert raised.value is error
    assert begun.ends == 0


async def test_a_response_after_it_was_handed_over_is_for_the_handler() -> None:
    begun, response = Begun(), Response()
    begun.exchange.hand_over()
    begun.answer.set_result(response)
    assert await begun.task is None
    assert await begun.exchange.take() is response
    assert begun.ends == 0


async def test_the_handler_waits_for_the_response() -> None:
    begun, response = Begun(), Response()
    begun.exchange.hand_over()
    taken = asyncio.create_task(begun.exchange.take())
    await until_run(begun)
    assert not taken.done()
    begun.answer.set_result(response)
    assert await taken is response


async def test_a_lost_connection_ends_the_exchange() -> None:
    begun = Begun()
    await until_run(begun)
    begun.exchange.abandon()
    with pytest.raises(asyncio.CancelledError):
        await begun.task
    assert (begun.ends, begun.answer.cancelled()) == (1, True)


async def test_a_connection_that_is_lost_after_the_response_was_handed_over_ends_the_exchange() -> None:
    begun = Begun()
    begun.exchange.hand_over()
    begun.answer.set_result(Response())
    assert await begun.task is None
    begun.exchange.abandon()
    assert begun.ends == 1


async def test_the_handlers_cancellation_ends_the_wait_and_the_handler_ends_the_exchange() -> None:
    begun = Begun()
    begun.exchange.hand_over()
    taken = asyncio.create_task(begun.exchange.take())
    await until_run(begun)
    taken.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taken
    assert begun.task.cancelled()
    assert (begun.ends, begun.answer.cancelled()) == (0, True)


async def test_a_handler_that_gets_nothing_says_so() -> None:
    """It can't happen: the caller gets None only for an error, or once it is handed over."""

    async def none() -> Any:
        return None

    begun = Begun()
    await until_run(begun)
    response: Awaitable[StreamResponse] = none()
    assert await begun.exchange.run(response) is None
    begun.answer.set_result(None)  # type: ignore[arg-type]
    with pytest.raises(ProxyError, match="see the proxy log"):
        await begun.exchange.take()
