"""The servers of one Redis store: which of them has a name, and how it is asked."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.cache.redis.connection import Command
from proxy.cache.redis.node import Node
from proxy.cache.redis.redis_url import Address

_MAX_PORT = 65535
# Between two questions where the servers are, however many requests find that what is known is wrong.
_LEARN_PAUSE_S = 0.5


def announced(host: str, port: int) -> Address:
    """An address that a server has named. Raises `ValueError` for what is none: port 0 stands for a socket on this
    machine, to which no server may send the proxy."""
    if not host or not 0 < port <= _MAX_PORT:
        raise ValueError(f"port {port} of {host!r} was named")
    return host, port


class Servers(Protocol):
    """Answers go into ``results`` as they come, by name: a value, None, or a `RedisError` in the place of one."""

    async def ready(self, *, timeout_s: float) -> None:
        """Wait until servers are known. Raises `RedisError` if that fails or takes longer."""
        ...

    def of(self, name: str) -> Address | None:
        """Of the server that has ``name``, as far as is known."""
        ...

    async def get(self, server: Address, names: Sequence[str], results: dict[str, object]) -> None:
        """Ask one server for its values."""
        ...

    async def run(self, server: Address, commands: Mapping[str, Command], results: dict[str, object]) -> None:
        """Run a command for each name, on the server that has them."""
        ...

    @property
    def is_partially_up(self) -> bool:
        """Whether a server that failed is one of several, and others work."""
        ...

    async def aclose(self) -> None: ...


class OneServer:
    """Every name is on one server."""

    is_partially_up = False

    def __init__(self, node: Node | None) -> None:
        self._node = node

    async def ready(self, *, timeout_s: float) -> None:
        return None

    def of(self, name: str) -> Address | None:
        return None if self._node is None else self._node.address

    async def get(self, server: Address, names: Sequence[str], results: dict[str, object]) -> None:
        (values,) = await self._ask([("MGET", *names)])
        if isinstance(values, list) and len(values) == len(names):
            results.update(zip(names, values, strict=True))
        else:
            failure = values if isinstance(values, RedisError) else RedisError("MGET was answered with something else")
            results.update(dict.fromkeys(names, failure))

    async def run(self, server: Address, commands: Mapping[str, Command], results: dict[str, object]) -> None:
        results.update(zip(commands, await self._ask(list(commands.values())), strict=True))

    async def _ask(self, commands: Sequence[Command]) -> Sequence[object]:
        node = self._node
        if node is None:
            return [RedisConnectionError("no server is known")] * len(commands)
        try:
            answers = await node.run(commands)
        except RedisError as error:
            answers = [error] * len(commands)
        failure = next((answer for answer in answers if isinstance(answer, RedisError)), None)
        if failure is not None:
            await self._on_failure(node, failure)
        return answers

    async def _on_failure(self, node: Node, failure: RedisError) -> None:
        if isinstance(failure, ReadOnlyError):
            # It was demoted. A managed service gives its name to the server that took its place.
            await node.reconnect()

    async def aclose(self) -> None:
        if self._node is not None:
            await self._node.aclose()


class TopologyRefresher:
    """Where servers are, asked of those who know: before the first command, and anew when something seems wrong.

    However many notice it, one question is under way at a time, and the next one is a pause away.
    """

    def __init__(self, learn: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """``learn`` asks and keeps what it is told; it raises `RedisError` if nobody knows."""
        self._learn = learn
        self._learning: asyncio.Task[None] | None = None
        self._asked_s = float("-inf")
        self._failure: BaseException | None = None
        self._is_known = False

    def learn_soon(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._learning is None and now_s - self._asked_s >= _LEARN_PAUSE_S:
            self._asked_s = now_s
            self._learning = asyncio.create_task(self._learn())
            self._learning.add_done_callback(self._learnt)

    def _learnt(self, learning: "asyncio.Task[None]") -> None:
        self._learning = None
        if not learning.cancelled():
            self._failure = learning.exception()
            self._is_known |= self._failure is None

    async def wait(self, *, timeout_s: float) -> None:
        """Until it is known for the first time. Raises `RedisError` if that fails or takes longer."""
        if self._is_known:
            return
        self.learn_soon()
        if self._learning is not None:
            # Waiting does not cancel it: others wait for it too.
            _, late = await asyncio.wait([self._learning], timeout=timeout_s)
            if late:
                raise RedisTimeoutError(f"nobody said in {timeout_s * 1000:.0f} ms where the servers are")
        if self._failure is not None:
            raise RedisConnectionError(str(self._failure)) from self._failure

    async def aclose(self) -> None:
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.wait([self._learning])
