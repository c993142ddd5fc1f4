"""The sizes that a reply declares are checked against its command before hiredis parses it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import RedisError

from proxy.cache.redis.cluster import Cluster
from proxy.cache.redis.redis_url import Address
from proxy.cache.redis.resp import STATUS, TREE, VALUE, ReplyGuard, Shape, UnexpectedReply, values
from proxy.cache.redis.store import RedisStore
from proxy.errors import StoreError
from tests.cache.redis.test_sentinel import Scripted, master_of

KEY = bytes(32)

SLOTS = b"*1\r\n*3\r\n:0\r\n:16383\r\n*4\r\n$9\r\n127.0.0.1\r\n:7000\r\n$2\r\nid\r\n*2\r\n$8\r\nhostname\r\n$1\r\nh\r\n"
RIGHT: list[tuple[Shape, bytes]] = [
    (STATUS, b"+OK\r\n"),
    (STATUS, b"$-1\r\n"),
    (STATUS, b"-OOM command not allowed\r\n"),
    (VALUE, b"$5\r\nvalue\r\n"),
    (VALUE, b"$0\r\n\r\n"),
    (VALUE, b"$-1\r\n"),
    (VALUE, b"$4\r\n\r\n\r\n\r\n"),  # a value that looks like the protocol
    (VALUE, b"-MOVED 1 127.0.0.1:7000\r\n"),
    (values(1), b"*1\r\n$-1\r\n"),
    (values(3), b"*3\r\n$5\r\nvalue\r\n$-1\r\n$15\r\n*1000000000\r\n$9\r\n"),
    (values(2), b"*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6379\r\n"),
    (values(2), b"*-1\r\n"),
    (TREE, SLOTS),
    (TREE, b"*0\r\n"),
    (TREE, b"*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$4\r\nkeys\r\n$2\r\n\r\n\r\n"),  # XRANGE
]
WRONG: list[tuple[Shape, bytes]] = [
    (values(1), b"*1000000000\r\n"),
    (values(1), b"*2\r\n"),
    (values(2), b"*1\r\n"),
    (values(1), b"*0\r\n"),
    (values(1), b"*x\r\n"),
    (values(1), b"$5\r\nvalue\r\n"),
    (values(1), b"+OK\r\n"),
    (values(1), b":1\r\n"),
    (values(1), b"*1\r\n:1\r\n"),
    (values(1), b"*1\r\n+OK\r\n"),
    (values(1), b"*1\r\n*1\r\n"),
    (values(1), b"*1\r\n-ERR\r\n"),
    (values(1), b"*1\r\n$1000000000\r\n"),
    (values(1), b"%1000000000\r\n"),  # RESP3
    (values(1), b"~1\r\n"),
    (values(1), b">2\r\n"),
    (values(1), b"(1\r\n"),
    (values(1), b"\r\n"),
    (values(1), b"HTTP/1.1 400 Bad Request\r\n"),
    (values(1), b"x" * 10_000),
    (values(5), b"*5\r\n" + b"".join(b"$8000000\r\n" + bytes(8_000_000) + b"\r\n" for _ in range(5))),
    (VALUE, b"*1\r\n"),
    (VALUE, b"$8388609\r\n"),
    (STATUS, b"$2\r\nOK\r\n"),
    (STATUS, b"+QUEUED\r\n"),
    (STATUS, b":1\r\n"),
    (STATUS, b"*1\r\n"),
    (TREE, b"*200001\r\n"),
    (TREE, b"*100000\r\n*100001\r\n"),
    (TREE, b"*1\r\n" * 6),
    (TREE, b"+OK\r\n"),
]


def is_accepted(shape: Shape, *pieces: bytes) -> bool:
    guard = ReplyGuard()
    guard.expect([shape])
    try:
        for piece in pieces:
            guard.feed(piece)
    except UnexpectedReply:
        return False
    return True


@pytest.mark.parametrize(("shape", "reply"), RIGHT)
def test_a_reply_of_the_expected_shape_passes_however_it_is_split(shape: Shape, reply: bytes) -> None:
    reader = hiredis.Reader()
    reader.feed(reply)
    assert reader.gets() is not False
    assert not reader.has_data()  # it is one reply, and a whole one
    assert is_accepted(shape, reply)
    assert is_accepted(shape, *(reply[at : at + 1] for at in range(len(reply))))
    for at in range(len(reply)):
        assert is_accepted(shape, reply[:at], reply[at:])


@pytest.mark.parametrize(("shape", "reply"), WRONG, ids=lambda case: str(case)[:40])
def test_a_reply_of_another_shape_is_refused(shape: Shape, reply: bytes) -> None:
    assert not is_accepted(shape, reply)
    assert not is_accepted(shape, *(reply[at : at + 7] for at in range(0, min(len(reply), 20_000), 7)), reply[20_000:])


def test_replies_on_one_connection_are_matched_to_their_commands() -> None:
    guard = ReplyGuard()
    shapes, replies = zip(*RIGHT, strict=True)
    for _ in range(3):
        guard.expect(shapes)
        guard.feed(b"".join(replies))
    with pytest.raises(UnexpectedReply):
        guard.feed(b"$5\r\nvalue\r\n")  # nobody asked


@given(st.sampled_from(RIGHT), st.data())
def test_hiredis_never_gets_more_elements_than_expected(case: tuple[Shape, bytes], data: st.DataObject) -> None:
    """Whatever is changed in a right reply: refused, refused by hiredis, still incomplete, or within the bounds."""
    shape, reply = case
    changed = bytearray(reply)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b"*", b"$", b"9999", b"\r\n", b"-1"]))
        )
    if not is_accepted(shape, bytes(changed)):
        return
    reader = hiredis.Reader(protocolError=ValueError, replyError=RuntimeError, notEnoughData=...)
    reader.feed(bytes(changed))
    try:
        found = reader.gets(False)
    except ValueError:
        return
    elements = len(found) if isinstance(found, list) else 0
    assert shape.elements is None or elements in (0, shape.elements)


# --- servers that lie


@asynccontextmanager
async def lying(reply: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """The URL of a server that replies everything with ``reply``, and a list of how often it was hung up on."""
    hung_up: list[int] = []

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(reply)
        hung_up.append(1)
        writer.close()

    server = await asyncio.start_server(lie, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", hung_up
    server.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"*1000000000\r\n",
        b"*1\r\n$1000000000\r\n",
        b"*1\r\n*1\r\n",
        b"*2\r\n$-1\r\n$-1\r\n",
        b"%1\r\n*0\r\n+b\r\n",
        b":1\r\n",
    ],
)
async def test_an_unexpected_reply_closes_the_connection(reply: bytes) -> None:
    async with lying(reply) as (url, hung_up):
        store = RedisStore(url, timeout_s=60.0, max_connections=8)
        for times in (1, 2):
            with pytest.raises(StoreError) as failed:
                await store.get_many([KEY], timeout_s=60.0)
            assert failed.value.reason == "corrupt"
            while len(hung_up) < times:
                await asyncio.sleep(0)
        with pytest.raises(StoreError) as failed:
            await store.put_many({KEY: b"x"}, ttl_s=None, overwrite=False)
        assert failed.value.reason == "corrupt"
        await store.aclose()


async def test_an_unexpected_reply_while_connecting_closes_the_connection() -> None:
    async with lying(b"*1000000000\r\n") as (url, _):
        store = RedisStore(url.replace("redis://", "redis://user:password@"), timeout_s=60.0, max_connections=8)
        with pytest.raises(StoreError) as failed:
            await store.get_many([KEY], timeout_s=60.0)
        assert failed.value.reason == "corrupt"
        await store.aclose()


@pytest.mark.parametrize("port", [b"0", b"65536", b"-1", b"x", b""])
async def test_a_sentinel_that_names_an_invalid_port_is_ignored(port: bytes) -> None:
    """Port 0 is how the proxy writes the path of a socket on this machine."""
    master, connected = master_of([b"/run/some.sock", port], [b"/run/some.sock", port], [b"new", b"1"])
    await master.ready(timeout_s=5.0)
    assert [node.address for node in connected] == [("new", 1)]


@pytest.mark.parametrize("port", [0, 65536, -1])
async def test_a_cluster_that_names_an_invalid_port_is_refused(port: int) -> None:
    connected: list[Address] = []

    def connect(address: Address) -> Scripted:
        connected.append(address)
        return Scripted(address, [[0, 16383, [b"/run/some.sock", port, b"id"]]])

    cluster = Cluster([("seed", 1)], connect)  # type: ignore[arg-type]
    with pytest.raises(RedisError, match=str(port)):
        await cluster.ready(timeout_s=5.0)
    assert connected == [("seed", 1)]
