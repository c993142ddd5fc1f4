"""The log of replaced and removed values in a Redis: announced to, and read."""

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import islice

from redis.exceptions import NoPermissionError, RedisError

from proxy.cache.redis.changes import MAX_ANNOUNCED_KEYS, Position, announcements, purge_announcements
from proxy.cache.redis.connection import Command
from proxy.cache.redis.node import store_error
from proxy.cache.store import Changes, Purge
from proxy.errors import StoreError

_log = logging.getLogger(__name__)

_FORBIDDEN = ("unknown command", "WRONGTYPE")


class ChangeLog:
    """If an announcement fails because the server with the log fails, it is repeated before the next read."""

    def __init__(self, run: Callable[[Sequence[Command]], Awaitable[Sequence[object]]]) -> None:
        """``run`` sends commands to the server that has the log. Their replies are objects or `RedisError`."""
        self._run = run
        self._position = Position()
        self._unannounced: dict[bytes, None] = {}
        self._has_warned = False

    async def announce(self, keys: Collection[bytes]) -> None:
        """Append ``keys`` to the log. Raises nothing: values are replaced even if that can't be announced."""
        waiting = self._unannounced | dict.fromkeys(keys)
        if not waiting:
            return
        self._unannounced = {}
        sent = list(announcements(list(waiting)))
        try:
            replies = await self._run([command for _, command in sent])
            for (some, _), reply in zip(sent, replies, strict=True):
                if not isinstance(reply, RedisError) or self._is_forbidden(reply):
                    for key in some:
                        del waiting[key]
        finally:
            # With one key more than this maximum, the next announcement is one event for all keys.
            self._unannounced = dict.fromkeys(islice(self._unannounced | waiting, MAX_ANNOUNCED_KEYS + 1))

    async def announce_purge(self, purge: Purge) -> None:
        """Raises `StoreError` if that is not possible."""
        for reply in await self._run(list(purge_announcements(purge))):
            if isinstance(reply, RedisError):
                raise store_error(reply) from reply

    async def read(self) -> Changes:
        """As `Store.changes`."""
        await self.announce(())
        (reply,) = await self._run([self._position.command])
        if isinstance(reply, RedisError):
            self._is_forbidden(reply)
            raise store_error(reply) from reply
        try:
            return self._position.advance(reply)
        except ValueError as error:
            raise StoreError("corrupt", str(error)) from error

    def _is_forbidden(self, error: RedisError) -> bool:
        """Whether the server will not take such a command, however often it is sent."""
        is_forbidden = isinstance(error, NoPermissionError) or str(error).startswith(_FORBIDDEN)
        if is_forbidden and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "Redis refuses its log of replaced entries (%s): what one process refreshes (Cache-Control: no-cache),"
                " others keep serving from memory. The user needs +xadd +xrange ~embedding-changes",
                error,
            )
        return is_forbidden
