"""Reads of many names, in commands of bounded size to each of the servers that have them."""

import asyncio
import logging
from collections.abc import Sequence

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.cache.redis.names import record_names
from proxy.cache.redis.topology import Servers, no_server, require_ready
from proxy.cache.timed_wait import timed_wait
from proxy.tasks import TaskSet, log_to

_log = logging.getLogger(__name__)


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
        names, results = record_names(keys), dict[str, object]()
        commands = [
            self._tasks.start(self._servers.get(server, its[start : start + self._max_names], results))
            for server, its in self._servers.by_server(names).items()
            for start in range(0, len(its), self._max_names)
        ]
        if commands:
            # The timeout does not cancel the commands: a connection that is being opened serves later ones.
            await timed_wait(commands, timeout_s=timeout_s)
        try:
            return dict(zip(keys, map(results.__getitem__, names), strict=True))
        except KeyError:
            failure = _failure(commands, timeout_s)
            return {key: results.get(name, failure) for key, name in zip(keys, names, strict=True)}

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
