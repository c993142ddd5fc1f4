"""A connection to a Redis server: commands are sent together, and their replies are received in order.

redis-py's own connections are not used: an exchange of one small command takes them a tenth of a millisecond, ten
times as long as this one, and their parser trusts the sizes that a reply declares.
"""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from hiredis import Reader, pack_command
from redis._parsers import BaseParser  # its table of errors is not public
from redis.exceptions import AuthenticationWrongNumberOfArgsError, InvalidResponse, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.cache.redis import resp
from proxy.cache.redis.redis_url import Address, Login
from proxy.cache.redis.resp import ReplyGuard, Shape, UnexpectedReply
from proxy.cache.redis.values import ValuesReader

Command = tuple[str | bytes | int, ...]

_INCOMPLETE = object()
# A server that is gone without a word is noticed in 45 s, also by a connection that is not in use.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Connection(asyncio.Protocol):
    """Runs one exchange at a time. Any failure closes it, since it may have unread replies."""

    def __init__(self, server: str) -> None:
        """``server`` is its name in errors."""
        self._server = server
        self._guard = ReplyGuard()
        self._reader = Reader(
            protocolError=InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=_INCOMPLETE
        )
        self._transport: asyncio.Transport
        self._exchange: asyncio.Future[list[object]] | None = None
        self._replies: list[object] = []
        self._missing = 0  # replies
        self._values: ValuesReader | None = None  # of the only reply that is due, if it may be an array of values
        self._is_closed = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_closed(self) -> bool:
        """True also before the event loop reports a lost connection: a write to its transport may fail by then."""
        return self._is_closed or self._transport.is_closing()

    async def run(self, commands: Sequence[Command], *, timeout_s: float) -> list[object]:
        """The replies in the order of ``commands``, each an object or a `ResponseError`. Raises `RedisError`."""
        if self.is_closed:
            raise RedisConnectionError(f"{self._server} closed the connection")
        loop = asyncio.get_running_loop()
        exchange: asyncio.Future[list[object]] = loop.create_future()
        self._exchange = exchange
        self._replies, self._missing = [], len(commands)
        self._values = ValuesReader(len(commands[0]) - 1) if _is_only_mget(commands) else None
        if self._values is None:
            self._guard.expect([_shape(command) for command in commands])
        self._transport.writelines([_packed(command) for command in commands])
        timer = loop.call_later(timeout_s, self._expire, timeout_s)
        try:
            return await exchange
        finally:
            timer.cancel()
            self._exchange = None
            if self._missing:
                self.close()

    def _expire(self, timeout_s: float) -> None:
        self._fail(RedisTimeoutError(f"{self._server} did not reply in {timeout_s * 1000:.0f} ms"))

    def data_received(self, data: bytes) -> None:
        if self.is_closed:
            return
        if self._exchange is None:
            self._fail(RedisConnectionError(f"{self._server} sent something without a command"))
            return
        try:
            if self._values is not None:
                self._read_values(self._values, data)
            else:
                self._parse(data)
        except UnexpectedReply as error:  # hiredis never gets these bytes
            self._fail(InvalidResponse(f"{self._server} sent an unexpected reply: {error}"))
        except RedisError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 # for some invalid replies redis-py raises Python's own errors
            self._fail(RedisError(f"{self._server} sent an invalid reply: {type(error).__name__}"), error)

    def _read_values(self, values: ValuesReader, data: bytes) -> None:
        other = values.feed(data)
        if other is not None:  # an error, or an unexpected reply
            self._values = None
            self._guard.expect([resp.values(values.count)])
            self._parse(other)
        elif values.is_complete:
            self._replies, self._missing = [values.values], 0
            self._end(has_more=values.has_more)

    def _parse(self, data: bytes) -> None:
        self._guard.feed(data)
        self._reader.feed(data)
        while self._missing:
            reply = self._reader.gets(False)
            if reply is _INCOMPLETE:
                return
            if isinstance(reply, RedisConnectionError):  # it is loading its data, or wants a password
                raise reply
            # One SET that is refused because memory is full must not hide the results of the others.
            self._replies.append(reply)
            self._missing -= 1
        self._end(has_more=self._reader.has_data())

    def _end(self, *, has_more: bool) -> None:
        """``has_more``: more bytes came than were asked for. The next exchange must not take them for its reply."""
        exchange = self._exchange
        if exchange is not None and not exchange.done():
            exchange.set_result(self._replies)
        if has_more:
            self.close()

    def _fail(self, error: RedisError, cause: Exception | None = None) -> None:
        error.__cause__ = cause
        if self._exchange is not None and not self._exchange.done():
            self._exchange.set_exception(error)
        self.close()

    def close(self) -> None:
        self._is_closed = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(RedisConnectionError(f"{self._server}: {exc or 'the server closed the connection'}"))
        if not self.closed.done():
            self.closed.set_result(None)


class TrustedAuthorities:
    """The TLS context of connections. Making one blocks the event loop for 30 ms, so it is made again only after a
    certificate was not trusted: the file of authorities may have been renewed since."""

    def __init__(self) -> None:
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context()
        return self._context

    def read_again(self) -> None:
        self._context = None


async def connect(
    address: Address,
    server: str,
    *,
    login: Login,
    authorities: TrustedAuthorities | None,
    database: int,
    timeout_s: float,
) -> Connection:
    """A connection to ``address``, which errors name ``server``. With ``authorities`` it uses TLS.

    ``timeout_s`` is for each step: connecting, and logging in. Raises `RedisError`.

    RESP2 without HELLO and CLIENT SETINFO: without a login connecting takes no round trip and needs no permission.
    """
    host, port = address
    loop, protocol = asyncio.get_running_loop(), partial(Connection, server)
    context = authorities.context() if authorities else None
    try:
        async with asyncio.timeout(timeout_s):
            if port == 0:
                _, connection = await loop.create_unix_connection(protocol, host)
            else:
                transport, connection = await loop.create_connection(protocol, host, port, ssl=context)
                _keep_alive(transport)
    except TimeoutError:
        raise RedisTimeoutError(f"{server}: no connection in {timeout_s * 1000:.0f} ms") from None
    except (OSError, ValueError) as error:  # ValueError: a host that is no name
        if authorities and isinstance(error, ssl.SSLCertVerificationError):
            authorities.read_again()
        raise RedisConnectionError(f"{server}: {error}") from error
    try:
        await _log_in(connection, login, database, timeout_s)
    except BaseException:
        connection.close()
        raise
    return connection


def _keep_alive(transport: asyncio.Transport) -> None:
    its: Any = transport.get_extra_info("socket")
    its.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            its.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _log_in(connection: Connection, login: Login, database: int, timeout_s: float) -> None:
    password = login.password or ""
    if login.user or login.password:
        auth: Command = ("AUTH", login.user, password) if login.user else ("AUTH", password)
        try:
            await _confirmed(connection, auth, timeout_s)
        except AuthenticationWrongNumberOfArgsError:  # before Redis 6 there were no users
            await _confirmed(connection, ("AUTH", password), timeout_s)
    if database:
        await _confirmed(connection, ("SELECT", database), timeout_s)


async def _confirmed(connection: Connection, command: Command, timeout_s: float) -> None:
    (reply,) = await connection.run([command], timeout_s=timeout_s)
    if isinstance(reply, RedisError):
        raise reply
    if reply != b"OK":
        raise RedisConnectionError(f"unexpected reply to {command[0]!r}")


def _is_only_mget(commands: Sequence[Command]) -> bool:
    return len(commands) == 1 and commands[0][0] == "MGET"


def _packed(command: Command) -> bytes:
    packed: bytes = pack_command(command)  # type: ignore[arg-type] # its stub has no variadic tuples
    return packed


def _shape(command: Command) -> Shape:
    """The shape that the reply to ``command`` must have."""
    match command[0]:
        case "MGET":
            return resp.values(len(command) - 1)
        case "GET" | "XADD":  # an event's ID
            return resp.VALUE
        case "SENTINEL":  # GET-MASTER-ADDR-BY-NAME: host and port
            return resp.values(2)
        case "CLUSTER" | "XRANGE" | "SCAN":  # SLOTS; events; a cursor and names
            return resp.TREE
        case "DEL" | "INCRBY" | "EXPIREAT":
            return resp.NUMBER
    return resp.STATUS  # SET, ASKING
