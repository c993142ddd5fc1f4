"""The servers of one Redis store: which of them has a name, and how commands are sent to it."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.cache.redis.connection import Command
from proxy.cache.redis.node import Node, store_error
from proxy.cache.redis.redis_url import Address
from proxy.tasks import TaskSet

_MAX_PORT = 65535
# Between two refreshes, however many requests find the topology outdated.
_REFRESH_PAUSE_S = 0.5


def announced(host: str, port: int) -> Address:
    """An address that a server has announced. Raises `ValueError` if it is not valid: port 0 would be a socket on this
    machine, to which no server may redirect the proxy."""
    if not host or not 0 < port <= _MAX_PORT:
        raise ValueError(f"port {port} of {host!r} was announced")
    return host, port


class Servers(Protocol):
    """Replies are put into ``results`` as they arrive, by name: a value, None, or a `RedisError`."""

    @property
    def is_ready(self) -> bool:
        """Whether servers are known."""
        ...

    async def ready(self, *, timeout_s: float) -> None:
        """Wait until servers are known. Raises `RedisError` if that fails or takes longer."""
        ...

    @property
    def addresses(self) -> Collection[Address]:
        """The addresses of all servers that have values. Each value is on one server only."""
        ...

    def by_server(self, names: Sequence[str]) -> Mapping[Address, Sequence[str]]:
        """``names`` by the address of the server that has them. Names whose server is not known are left out."""
        ...

    async def get(self, server: Address, names: Sequence[str], results: dict[str, object]) -> None:
        """Read values from one server."""
        ...

    async def run(self, server: Address, commands: Mapping[str, Command], results: dict[str, object]) -> None:
        """Run a command for each name on the server that has them."""
        ...

    @property
    def is_partially_up(self) -> bool:
        """Whether the store has several servers of which some work."""
        ...

    async def aclose(self) -> None: ...


def no_server() -> RedisError:
    return RedisConnectionError("no server is known to have it")


async def require_ready(servers: Servers, *, timeout_s: float) -> None:
    """Raises `StoreError` if the servers are not known in time."""
    try:
        await servers.ready(timeout_s=timeout_s)
    except RedisError as error:
        raise store_error(error) from error


class OneServer:
    """Every name is on one server."""

    is_partially_up = False

    def __init__(self, node: Node | None) -> None:
        self._node = node

    @property
    def is_ready(self) -> bool:
        return True

    async def ready(self, *, timeout_s: float) -> None:
        return None

    @property
    def addresses(self) -> Collection[Address]:
        return () if self._node is None else (self._node.address,)

    def by_server(self, names: Sequence[str]) -> Mapping[Address, Sequence[str]]:
        return {} if self._node is None else {self._node.address: names}

    async def get(self, server: Address, names: Sequence[str], results: dict[str, object]) -> None:
        (values,) = await self._run([("MGET", *names)])
        if isinstance(values, list) and len(values) == len(names):
            results.update(zip(names, values, strict=True))
        else:
            failure = values if isinstance(values, RedisError) else RedisError("unexpected reply to MGET")
            results.update(dict.fromkeys(names, failure))

    async def run(self, server: Address, commands: Mapping[str, Command], results: dict[str, object]) -> None:
        results.update(zip(commands, await self._run(list(commands.values())), strict=True))

    async def _run(self, commands: Sequence[Command]) -> Sequence[object]:
        node = self._node
        if node is None:
            return [RedisConnectionError("no server is known")] * len(commands)
        try:
            replies = await node.run(commands)
        except RedisError as error:
            replies = [error] * len(commands)
        failure = next((reply for reply in replies if isinstance(reply, RedisError)), None)
        if failure is not None:
            self._on_failure(node, failure)
        return replies

    def _on_failure(self, node: Node, failure: RedisError) -> None:
        if isinstance(failure, ReadOnlyError):
            # It was demoted to a replica. In a managed service its host name now resolves to the new master.
            node.reconnect()

    async def aclose(self) -> None:
        if self._node is not None:
            await self._node.aclose()


class TopologyRefresher:
    """Fetches the topology before the first command, and again when a request finds it outdated.

    One refresh is in progress at a time, however many requests ask for it, and the next one follows after a pause.
    """

    def __init__(self, refresh: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """``refresh`` fetches and keeps the topology; it raises `RedisError` if it can't be had."""
        self._refresh = refresh
        self._tasks = TaskSet(self._failed)
        self._task: asyncio.Task[None] | None = None
        self._started_s = float("-inf")
        self._failure: BaseException | None = None  # of the latest refresh
        self.is_known = False

    def refresh_soon(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if not len(self._tasks) and now_s - self._started_s >= _REFRESH_PAUSE_S:
            self._started_s = now_s
            self._task = self._tasks.start(self._run())

    async def _run(self) -> None:
        await self._refresh()
        self._failure = None
        self.is_known = True

    def _failed(self, error: BaseException) -> None:
        self._failure = error

    async def wait(self, *, timeout_s: float) -> None:
        """Wait until the topology is known for the first time. Raises `RedisError` if that fails or takes longer."""
        if self.is_known:
            return
        self.refresh_soon()
        if self._task is not None:
            # The timeout does not cancel the refresh: other requests wait for it too.
            _, unfinished = await asyncio.wait([self._task], timeout=timeout_s)
            if unfinished:
                raise RedisTimeoutError(f"the servers' addresses were not received in {timeout_s * 1000:.0f} ms")
        if self._failure is not None:
            raise RedisConnectionError(str(self._failure)) from self._failure

    async def aclose(self) -> None:
        await self._tasks.aclose()
