"""The master by the sentinels' replies, and credentials for them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from proxy.cache.redis.connection import Command
from proxy.cache.redis.redis_url import Address
from proxy.cache.redis.sentinel import Master
from proxy.cache.redis.store import RedisStore
from proxy.errors import StoreError
from tests.support.redis_cluster import MASTER, RedisSentinels
from tests.support.redis_server import free_port

KEY, VALUE = bytes(32), b"value"


class Scripted:
    """A node that has one reply to everything."""

    def __init__(self, address: Address, reply: object = None) -> None:
        self.address = address
        self.reply = reply
        self.is_retired = False

    def __str__(self) -> str:
        return "".join(map(str, self.address))

    async def run(self, commands: Sequence[Command]) -> list[object]:
        if isinstance(self.reply, Exception):
            raise self.reply
        return [self.reply] * len(commands)

    def retire(self) -> None:
        self.is_retired = True


def master_of(*replies: object) -> tuple[Master, list[Scripted]]:
    """The master by these sentinels' replies, and who was connected to."""
    connected: list[Scripted] = []

    def connect(address: Address) -> Scripted:
        connected.append(Scripted(address, RedisConnectionError("gone")))
        return connected[-1]

    sentinels = [Scripted(("s", number), reply) for number, reply in enumerate(replies)]
    return Master(MASTER, sentinels, connect), connected  # type: ignore[arg-type]


GONE = RedisConnectionError("gone")
OLD, NEW = [b"old", b"1"], [b"new", b"1"]


@pytest.mark.parametrize(
    ("replies", "address"),
    [
        ([NEW], ("new", 1)),
        ([OLD, NEW, NEW], ("new", 1)),  # the first one is cut off from the others
        ([GONE, None, NEW], ("new", 1)),
    ],
)
async def test_the_master_is_the_server_that_most_sentinels_name(replies: list[object], address: Address) -> None:
    master, connected = master_of(*replies)
    await master.ready(timeout_s=5.0)
    assert [node.address for node in connected] == [address]
    assert master.by_server(["x"]) == {address: ["x"]}


async def test_without_a_sentinel_that_names_a_master_the_error_has_the_reasons() -> None:
    master, _ = master_of(GONE, None)
    with pytest.raises(RedisConnectionError, match=f"s0: gone; s1 has no master {MASTER}"):
        await master.ready(timeout_s=5.0)


async def test_after_a_failure_the_sentinels_are_queried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.cache.redis.topology._REFRESH_PAUSE_S", 0.0)
    master, connected = master_of(OLD)
    await master.ready(timeout_s=5.0)
    master._sentinels[0].reply = NEW  # type: ignore[attr-defined]
    results: dict[str, object] = {}
    await master.get(("old", 1), ["x"], results)
    assert isinstance(results["x"], RedisConnectionError)
    while len(connected) < 2:
        await asyncio.sleep(0)
    assert connected[0].is_retired
    assert master.by_server(["x"]) == {("new", 1): ["x"]}


async def test_sentinels_may_have_credentials_of_their_own(tmp_path: Path, program: str) -> None:
    servers = RedisSentinels(tmp_path, replicas=0, sentinels=1, program=program)
    sentinel = servers.sentinels[0]
    sentinel.command("ACL", "SETUSER", "asker", "on", ">s3ntinel", "-@all", "+sentinel|get-master-addr-by-name")
    sentinel.command("ACL", "SETUSER", "default", "off")
    dead = f"127.0.0.1:{free_port()}"
    for query, reason in (("", "connection"), ("?sentinel_username=asker&sentinel_password=s3ntinel", None)):
        url = f"redis+sentinel://{dead},{servers.addresses}/{MASTER}{query}"
        store = RedisStore(url, timeout_s=5.0, max_connections=8)
        if reason is not None:
            with pytest.raises(StoreError) as refused:
                await store.get_many([KEY], timeout_s=5.0)
            assert refused.value.reason == reason
        else:
            await store.put_many({KEY: VALUE}, ttl_s=None, overwrite=False)
            assert await store.get_many([KEY], timeout_s=5.0) == {KEY: VALUE}
        await store.aclose()
    servers.kill()
