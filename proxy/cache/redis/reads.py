"""Reads of concurrent requests, merged into few commands."""

import asyncio
import logging
from collections.abc import Sequence

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.cache.redis.names import record_name
from proxy.cache.redis.redis_url import Address
from proxy.cache.redis.topology import Servers, require_ready
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
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        await require_ready(self._servers, timeout_s=timeout_s)
        commands = self._add(keys)
        if commands:
            # The timeout does not cancel the commands: other requests wait for them too.
            tasks = [command.task for command in commands]
            _, unfinished = await asyncio.wait(tasks, timeout=max(0.0, end_s - loop.time()))
            if unfinished:
                await asyncio.sleep(0)  # the loop itself may be late, and have received the replies already
        results: dict[bytes, object] = dict.fromkeys(keys, RedisConnectionError("no server is known to have it"))
        for command, asked in commands.items():
            if command.task.done() and not command.task.cancelled():
                command.task.result()  # raises an unexpected error
            missing = RedisTimeoutError(f"no reply in {timeout_s * 1000:.0f} ms")
            results.update((key, command.results.get(name, missing)) for key, name in asked)
        return results

    def _add(self, keys: Sequence[bytes]) -> "dict[_Command, list[tuple[bytes, str]]]":
        """Add ``keys`` to commands that are sent at the end of this turn. Returns the keys of each command, and their
        names."""
        added: dict[_Command, list[tuple[bytes, str]]] = {}
        for key in keys:
            name = record_name(key)
            server = self._servers.server_of(name)
            if server is None:
                continue
            command = self._open.get(server)
            if command is None or len(command.names) >= self._max_names:
                command = self._open[server] = _Command()
                command.task = self._tasks.start(self._send(server, command))
            command.names[name] = None
            added.setdefault(command, []).append((key, name))
        return added

    async def _send(self, server: Address, command: "_Command") -> None:
        # A task's first step runs after everything that was ready when it was made: by then the other requests of this
        # turn have added their keys.
        if self._open.get(server) is command:
            del self._open[server]
        await self._servers.get(server, list(command.names), command.results)

    async def aclose(self) -> None:
        """Cancel the commands in progress: their requests have ended."""
        await self._tasks.aclose()


class _Command:
    """A read of several names from one server, and its results so far."""

    __slots__ = ("names", "results", "task")

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.results: dict[str, object] = {}
        self.task: asyncio.Task[None]
