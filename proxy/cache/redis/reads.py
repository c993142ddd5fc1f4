"""Reads of many names, in commands of bounded size to each of the servers that have them."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.cache.redis.names import record_names
from proxy.cache.redis.node import store_error
from proxy.cache.redis.redis_url import Address
from proxy.cache.redis.topology import Servers, no_server, require_ready
from proxy.cache.timed_wait import timed_wait
from proxy.tasks import TaskSet, log_to
from proxy.turns import in_iterations

_log = logging.getLogger(__name__)

_Commands = deque[Sequence[str]]  # the names that each of them reads

_KEYS_AN_ITERATION = 256  # whose names are made in a tenth of a millisecond
# Of one read, to each server. Each reply is received in parts of 256 kB, in a third of a millisecond each, and an
# iteration of the event loop takes a part of every reply that is there.
_COMMANDS_AT_ONCE = 3
_DOWN = frozenset({"timeout", "connection"})  # reasons for which further commands are not sent


class Reads:
    def __init__(self, servers: Servers, *, max_names: int) -> None:
        """``max_names`` is the most that one command reads."""
        self._servers = servers
        self._max_names = max_names
        self._tasks = TaskSet(log_to(_log, "a read from Redis"))

    async def get(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, object]:
        """By key its value, None, or a `RedisError`. Raises `StoreError` if no server is known."""
        if not self._servers.is_ready:
            loop = asyncio.get_running_loop()
            end_s = loop.time() + timeout_s
            await require_ready(self._servers, timeout_s=timeout_s)
            timeout_s = max(0.0, end_s - loop.time())
        names, results = list[str](), dict[str, object]()
        async for some in in_iterations(keys, size=_KEYS_AN_ITERATION):
            names += record_names(some)
        left: list[_Commands] = []
        tasks: list[asyncio.Task[None]] = []
        for server, its in self._servers.by_server(names).items():
            commands = _Commands(its[start : start + self._max_names] for start in range(0, len(its), self._max_names))
            left.append(commands)
            tasks += [
                self._tasks.start(self._run_each(server, commands, results))
                for _ in range(min(len(commands), _COMMANDS_AT_ONCE))
            ]
        if tasks:
            # The timeout does not cancel a command: a connection that is being opened serves later ones.
            await timed_wait(tasks, timeout_s=timeout_s)
        for commands in left:
            commands.clear()
        try:
            return dict(zip(keys, map(results.__getitem__, names), strict=True))
        except KeyError:
            failure = _failure(tasks, timeout_s)
            return {key: results.get(name, failure) for key, name in zip(keys, names, strict=True)}

    async def _run_each(self, server: Address, commands: _Commands, results: dict[str, object]) -> None:
        """Run ``commands`` one after the other, as other tasks do, until the server seems to be down."""
        while commands:
            names = commands.popleft()
            await self._servers.get(server, names, results)
            last = results[names[-1]]
            if isinstance(last, RedisError) and store_error(last).reason in _DOWN:
                for others in commands:
                    results.update(dict.fromkeys(others, last))
                commands.clear()

    async def aclose(self) -> None:
        """Cancel the commands in progress: their requests have ended."""
        await self._tasks.aclose()


def _failure(commands: Sequence["asyncio.Task[None]"], timeout_s: float) -> RedisError:
    """Why a name has no result."""
    failure: RedisError = no_server()
    for command in commands:
        if not command.done():
            failure = RedisTimeoutError(f"no reply in {timeout_s * 1000:.0f} ms")
        elif command.cancelled():
            failure = RedisConnectionError("the store is closed")
        else:
            command.result()  # raises an unexpected error
    return failure
