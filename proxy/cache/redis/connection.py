"""redis-py's connections, whose replies are checked before hiredis sees them (`proxy.cache.redis.resp`).

redis-py has no hook for that, so this module uses its private names. It is the only one that does.
"""

from collections.abc import Sequence
from typing import Any

from redis._parsers import _AsyncHiredisParser
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

from proxy.cache.redis import resp
from proxy.cache.redis.resp import ReplyGuard, Shape, UnexpectedReply

Command = tuple[str | bytes | int, ...]


class GuardedParser(_AsyncHiredisParser):
    _stream: Any
    _reader: Any
    guard: ReplyGuard

    def on_connect(self, connection: AbstractConnection) -> None:
        super().on_connect(connection)  # type: ignore[no-untyped-call]
        self.guard = ReplyGuard()

    async def read_from_socket(self) -> bool:
        data = await self._stream.read(self._read_size)
        if not data:
            raise RedisConnectionError("the server closed the connection")
        try:
            self.guard.feed(data)
        except UnexpectedReply as error:
            # The reader closes the connection on any error, so that hiredis never gets these bytes.
            raise InvalidResponse(f"unexpected reply: {error}") from error
        self._reader.feed(data)
        return True


class GuardedConnection(AbstractConnection):
    _parser: Any

    def expect(self, commands: Sequence[Command]) -> None:
        """``commands`` are sent next, and their replies read."""
        self._parser.guard.expect([_shape(command) for command in commands])


class TCPConnection(GuardedConnection, Connection):
    """To a host and port."""


class TLSConnection(GuardedConnection, SSLConnection):
    """The same by TLS."""


class UnixConnection(GuardedConnection, UnixDomainSocketConnection):
    """To a socket on this machine."""


def _shape(command: Command) -> Shape:
    """The shape that the reply to ``command`` must have."""
    match command[0]:
        case "MGET":
            return resp.values(len(command) - 1)
        case "GET":
            return resp.VALUE
        case "SENTINEL":  # GET-MASTER-ADDR-BY-NAME: host and port
            return resp.values(2)
        case "CLUSTER":  # SLOTS
            return resp.TREE
    return resp.STATUS  # SET, ASKING
