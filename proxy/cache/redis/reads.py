"""Reads of concurrent requests, merged into few commands."""

import asyncio
import logging
from collections.abc import Sequence

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.cache.redis.names import record_names
from proxy.cache.redis.redis_url import Address
from proxy.cache.redis.topology import Servers, no_server, require_ready
from proxy.cache.shared_read import SharedRead, wait_for
from proxy.tasks import TaskSet, log_to

_log = logging.getLogger(__name__)


class MergedReads:
    """Sends the reads that start in one turn of the event loop together, as one command to each server."""

    def __init__(self, servers: Servers, *, max_names: int) -> None:
        """``max_names`` is the most that one command reads."""
        self._servers = servers
        self._max_names = max_names
        self._open: dict[Address, _Command] = {}  # not sent yet
        self._tasks = TaskSet(log_to(_log, "a read from Redis"))

    async def get(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, object]:
        """By key its value, None, or a `RedisError`. Raises `StoreError` if no server is known."""
        if not self._servers.is_ready:
            loop = asyncio.get_running_loop()
            end_s = loop.time() + timeout_s
            await require_ready(self._servers, timeout_s=timeout_s)
            timeout_s = max(0.0, end_s - loop.time())
        names = record_names(keys)
        commands = self._add(names)
        if commands:
            # The timeout does not cancel the commands: other requests wait for them too.
            await wait_for(commands, timeout_s=timeout_s)
        results = commands[0].results if len(commands) == 1 else _merged(commands)
        try:
            return dict(zip(keys, map(results.__getitem__, names), strict=True))
        except KeyError:
            failure = _failure(commands, timeout_s)
            return {key: results.get(name, failure) for key, name in zip(keys, names, strict=True)}

    def _add(self, names: Sequence[str]) -> list["_Command"]:
        """Add ``names`` to commands that are sent at the end of this turn. Returns these commands."""
        commands = []
        for server, its in self._servers.by_server(names).items():
            rest = its
            while rest:
                command = self._open.get(server)
                if command is None or len(command.keys) >= self._max_names:
                    command = self._open[server] = _Command()
                    command.task = self._tasks.start(self._send(server, command))
                commands.append(command)
                rest = command.take(rest, self._max_names)
        return commands

    async def _send(self, server: Address, command: "_Command") -> None:
        # A new task first runs after everything that was ready when it was made, so the other requests of this
        # iteration have added their keys by now.
        if self._open.get(server) is command:
            del self._open[server]
        try:
            await self._servers.get(server, list(dict.fromkeys(command.keys)), command.results)
        finally:
            command.end()

    async def aclose(self) -> None:
        """Cancel the commands in progress: their requests have ended."""
        await self._tasks.aclose()
        for command in self._open.values():  # a task that is cancelled before its first step does not run at all
            command.end()


def _merged(commands: Sequence["_Command"]) -> dict[str, object]:
    results: dict[str, object] = {}
    for command in commands:
        results.update(command.results)
    return results


def _failure(commands: Sequence["_Command"], timeout_s: float) -> RedisError:
    """Why a name has no result."""
    failure: RedisError = no_server()
    for command in commands:
        if not command.task.done():
            failure = RedisTimeoutError(f"no reply in {timeout_s * 1000:.0f} ms")
        elif command.task.cancelled():
            failure = RedisConnectionError("the store is closed")
        else:
            command.task.result()  # raises an unexpected error
    return failure


class _Command(SharedRead[str]):
    """A read of several names from one server, and its results so far."""

    __slots__ = ("results", "task")

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, object] = {}
        self.task: asyncio.Task[None]
