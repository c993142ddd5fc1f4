"""One Redis server: its connections, and commands that travel together."""

import asyncio
from collections.abc import Sequence
from functools import partial

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.cache.redis.connection import Command, Connection, TrustedAuthorities, connect
from proxy.cache.redis.redis_url import Address, Login
from proxy.errors import StoreError


class NoFreeConnection(RedisConnectionError):
    """As many connections as there may be are in use."""


class Node:
    """Does not connect before the first command."""

    def __init__(
        self,
        address: Address,
        *,
        login: Login,
        is_tls: bool = False,
        database: int = 0,
        timeout_s: float,
        max_connections: int,
    ) -> None:
        """``timeout_s`` is for each step: waiting for a free connection, connecting, and a whole exchange."""
        self.address = address
        self._connect = partial(
            connect,
            address,
            str(self),
            login=login,
            authorities=TrustedAuthorities() if is_tls else None,
            database=database,
            timeout_s=timeout_s,
        )
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(max_connections)
        self._idle: list[Connection] = []  # the one that was used last is the last
        self._in_use: set[Connection] = set()
        self._outdated: set[Connection] = set()  # in use, to be closed afterwards
        self._is_retired = False

    def __str__(self) -> str:
        host, port = self.address
        return f"{host}:{port}" if port else host

    async def run(self, commands: Sequence[Command]) -> list[object]:
        """The replies in the order of ``commands``, each an object or a `ResponseError`.

        Raises `RedisError` if the server can't be reached or does not reply.
        """
        await self._wait_for_connection()
        try:
            connection = self._take_idle() or await self._connect()
            self._in_use.add(connection)
            try:
                return await connection.run(commands, timeout_s=self._timeout_s)
            finally:
                self._put_back(connection)
        finally:
            self._free.release()

    async def _wait_for_connection(self) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise NoFreeConnection(f"{self}: no free connection in {self._timeout_s * 1000:.0f} ms") from None

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed:
                return connection
        return None

    def _put_back(self, connection: Connection) -> None:
        self._in_use.discard(connection)
        if self._is_retired or connection in self._outdated:
            self._outdated.discard(connection)
            connection.close()
        elif not connection.is_closed:
            self._idle.append(connection)

    def reconnect(self) -> None:
        """Close the connections, those in use after their commands. The next command opens a new one."""
        self._outdated |= self._in_use
        while self._idle:
            self._idle.pop().close()

    def retire(self) -> None:
        """Finish the commands in progress and keep no connection. Does not wait for the commands."""
        self._is_retired = True
        self.reconnect()

    async def aclose(self) -> None:
        self._is_retired = True  # a connection that is being opened is closed as well
        connections = [*self._idle, *self._in_use]
        for connection in connections:
            connection.close()
        await asyncio.gather(*(connection.closed for connection in connections))


def store_error(error: RedisError) -> StoreError:
    if isinstance(error, RedisTimeoutError):
        reason = "timeout"
    elif isinstance(error, NoFreeConnection):
        reason = "busy"
    elif isinstance(error, RedisConnectionError):
        reason = "connection"
    elif isinstance(error, ResponseError):
        reason = "refused"
    else:
        reason = "corrupt"
    return StoreError(reason, str(error))
