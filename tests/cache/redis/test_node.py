"""The connections to one server: how many there are, when they are closed, and how they log in."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from proxy.cache.redis.connection import Command
from proxy.cache.redis.node import Node, store_error
from proxy.cache.redis.redis_url import Login
from tests.support.authorities import Authorities

GET: Command = ("GET", "x")


@dataclass
class FakeServer:
    """Replies to each command by ``reply``, and counts the connections. None is no reply yet."""

    reply: Callable[[list[bytes]], bytes | None]
    port: int = 0
    opened: int = 0
    open: list[asyncio.StreamWriter] = field(default_factory=list)
    commands: list[list[bytes]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.open.append(writer)
        with suppress(ConnectionError):  # a client that hangs up on unread bytes resets the connection
            while count := await reader.readline():
                command = []
                for _ in range(int(count[1:])):
                    size = int((await reader.readline())[1:])
                    command.append((await reader.readexactly(size + 2))[:-2])
                self.commands.append(command)
                if (reply := self.reply(command)) is not None:
                    writer.write(reply)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.open.remove(writer)

    def node(self, *, max_connections: int = 2, timeout_s: float = 60.0, login: Login | None = None) -> Node:
        address = "127.0.0.1", self.port
        return Node(address, login=login or Login(), timeout_s=timeout_s, max_connections=max_connections)


@asynccontextmanager
async def serving(reply: Callable[[list[bytes]], bytes | None]) -> AsyncIterator[FakeServer]:
    fake = FakeServer(reply)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    yield fake
    await until(lambda: not fake.open)
    server.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def test_connections_are_used_again_and_no_more_are_opened_than_may_be() -> None:
    async with serving(lambda _: b"$1\r\nx\r\n") as server:
        node = server.node(max_connections=2)
        for _ in range(3):
            assert await node.run([GET, GET]) == [b"x", b"x"]
        assert server.opened == 1
        assert await asyncio.gather(*(node.run([GET]) for _ in range(10))) == [[b"x"]] * 10
        assert server.opened == 2
        await node.aclose()


async def test_without_a_free_connection_the_store_is_busy() -> None:
    async with serving(lambda _: None) as server:
        node = server.node(max_connections=1, timeout_s=0.2)
        first = asyncio.create_task(node.run([GET]))
        await until(lambda: bool(server.commands))
        node._timeout_s = 0.0
        with pytest.raises(RedisError) as refused:
            await node.run([GET])
        assert store_error(refused.value).reason == "busy"
        first.cancel()
        await node.aclose()


async def test_after_a_cancelled_exchange_its_reply_is_not_the_next_ones() -> None:
    async with serving(lambda command: None if command[1] == b"slow" else b"$1\r\nx\r\n") as server:
        node = server.node()
        slow = asyncio.create_task(node.run([("GET", "slow")]))
        await until(lambda: bool(server.commands))
        (connection,) = server.open
        slow.cancel()
        await asyncio.wait([slow])
        connection.write(b"$4\r\nlate\r\n")
        assert await node.run([GET]) == [b"x"]
        assert server.opened == 2
        await node.aclose()


async def test_a_connection_on_which_something_came_unasked_is_not_used_again() -> None:
    async with serving(lambda _: b"$1\r\nx\r\n") as server:
        node = server.node()
        await node.run([GET])
        server.open[0].write(b"$1\r\ny\r\n")
        await until(lambda: not server.open)  # hung up
        assert await node.run([GET]) == [b"x"]
        assert server.opened == 2
        await node.aclose()


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "\0"])
async def test_a_host_that_is_no_name_is_a_failure_to_connect(host: str) -> None:
    node = Node((host, 6379), login=Login(), timeout_s=60.0, max_connections=1)
    with pytest.raises(RedisConnectionError):
        await node.run([GET])
    await node.aclose()


async def test_renewed_authorities_are_read_after_a_certificate_was_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorities = Authorities(tmp_path)
    trusted = authorities.write("trusted.pem", trustme.CA().cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    async with serving(lambda _: b"$1\r\nx\r\n") as server:
        secure = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=authorities.server_tls())
        address = "127.0.0.1", secure.sockets[0].getsockname()[1]
        node = Node(address, login=Login(), is_tls=True, timeout_s=60.0, max_connections=1)
        with pytest.raises(RedisConnectionError):
            await node.run([GET])
        trusted.write_bytes(authorities.ca.read_bytes())
        assert await node.run([GET]) == [b"x"]
        await node.aclose()
        secure.close()


async def test_an_idle_connection_that_was_just_lost_is_not_used() -> None:
    async with serving(lambda _: b"$1\r\nx\r\n") as server:
        node = server.node()
        await node.run([GET])
        node._idle[0]._transport.abort()  # its `connection_lost` is called in the next turn
        assert await node.run([GET]) == [b"x"]
        assert server.opened == 2
        await node.aclose()


async def test_a_connection_that_is_opened_while_the_node_is_closed_is_not_kept() -> None:
    async with serving(lambda _: b"$1\r\nx\r\n") as server:
        node = server.node()
        running = asyncio.create_task(node.run([GET]))
        await asyncio.sleep(0)
        await node.aclose()
        assert await running == [b"x"]
        await until(lambda: server.opened == 1 and not server.open)


@pytest.mark.parametrize("more", [b"+OK\r\n", b"+O"])
async def test_more_than_the_reply_is_not_the_next_ones(more: bytes) -> None:
    async with serving(lambda command: b"$1\r\n%b\r\n" % command[1] + more) as server:
        node = server.node()
        assert await node.run([("GET", "x")]) == [b"x"]
        assert await node.run([("GET", "y")]) == [b"y"]
        assert server.opened == 2
        await node.aclose()


async def test_connections_in_use_are_closed_after_their_commands_if_they_are_outdated() -> None:
    replies: list[bytes] = []
    async with serving(lambda _: replies.pop() if replies else None) as server:
        node = server.node()
        running = asyncio.create_task(node.run([GET]))
        await until(lambda: bool(server.commands))
        node.reconnect()
        server.open[0].write(b"$1\r\nx\r\n")
        assert await running == [b"x"]
        await until(lambda: not server.open)
        replies.append(b"$1\r\ny\r\n")
        assert await node.run([GET]) == [b"y"]
        node.retire()
        await until(lambda: not server.open)
        await node.aclose()


@pytest.mark.parametrize(
    ("login", "sent"),
    [
        (Login(), []),
        (Login(password="p"), [[b"AUTH", b"p"]]),
        (Login(user="u", password="p"), [[b"AUTH", b"u", b"p"]]),
        (Login(user="u"), [[b"AUTH", b"u", b""]]),
    ],
)
async def test_a_connection_logs_in_before_its_first_command(login: Login, sent: list[list[bytes]]) -> None:
    async with serving(lambda command: b"+OK\r\n" if command[0] == b"AUTH" else b"$-1\r\n") as server:
        node = server.node(login=login)
        assert await node.run([GET]) == [None]
        assert server.commands == [*sent, [b"GET", b"x"]]
        await node.aclose()


async def test_a_server_without_users_gets_the_password_only() -> None:
    """Before Redis 6 there were none."""

    def reply(command: list[bytes]) -> bytes:
        if command[0] != b"AUTH":
            return b"$-1\r\n"
        return b"+OK\r\n" if len(command) == 2 else b"-ERR wrong number of arguments for 'auth' command\r\n"

    async with serving(reply) as server:
        node = server.node(login=Login(user="default", password="p"))
        assert await node.run([GET]) == [None]
        await node.aclose()


@pytest.mark.parametrize(
    ("reply", "error"),
    [(b"-WRONGPASS invalid\r\n", AuthenticationError), (b"$-1\r\n", RedisConnectionError), (b":1\r\n", RedisError)],
)
async def test_a_refused_login_closes_the_connection(reply: bytes, error: type[RedisError]) -> None:
    async with serving(lambda _: reply) as server:
        node = server.node(login=Login(password="p"))
        with pytest.raises(error):
            await node.run([GET])
        await until(lambda: not server.open)
        await node.aclose()
