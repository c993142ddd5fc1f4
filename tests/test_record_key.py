"""Proxies with a secret, on a Redis that others write to as well."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from proxy import record as records
from proxy.config import StoreSetting
from proxy.record import Record
from proxy.vectors import DType, Vector
from tests.client import Client
from tests.conftest import StartProxy
from tests.redis_server import RedisServer
from tests.scripted import ScriptedUpstream, vector

SECRET = b"s" * 32
INVALID = "embedding_proxy_store_invalid_records_total"
OWN = [vector("m", "x", 16).tolist()]


@pytest.fixture
async def admin(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url) as admin:
        await admin.flushall()
        yield admin


@pytest.fixture
def store(redis_server: RedisServer) -> StoreSetting:
    return StoreSetting(url=redis_server.url)


async def names(admin: Redis) -> list[str]:
    return [name.decode() for name in await admin.keys("embedding:*") if isinstance(name, bytes)]


async def value(admin: Redis, name: str) -> bytes:
    found = await admin.get(name)
    assert isinstance(found, bytes)
    return found


async def ask(client: Client) -> str:
    """For the one item; returns what the cache said of it. No vector but its own will do."""
    answer = await client.embed("x", encoding_format="base64")
    assert answer.status == 200
    assert answer.vectors == OWN
    return answer.cache


async def fresh(start_proxy: StartProxy, store: StoreSetting, secret: bytes | None) -> Client:
    """A proxy with an empty memory, for which the credential is good."""
    client = await start_proxy(store=store, record_key=secret)
    assert (await client.embed("warm-up", headers={"Cache_Control": "no-store, no-cache"})).status == 200
    return client


async def test_who_shares_the_secret_shares_the_records(
    start_proxy: StartProxy, store: StoreSetting, admin: Redis
) -> None:
    assert await ask(await fresh(start_proxy, store, SECRET)) == "MISS"
    client = await fresh(start_proxy, store, SECRET)
    assert await ask(client) == "HIT"
    assert await client.metric(INVALID, reason="tag") == 0


@pytest.mark.parametrize("secret", [None, b"t" * 32], ids=["no tag", "another secret's tag"])
async def test_a_planted_record_is_a_miss_and_is_replaced(
    start_proxy: StartProxy, store: StoreSetting, admin: Redis, secret: bytes | None
) -> None:
    await ask(await fresh(start_proxy, store, SECRET))
    (name,) = await names(admin)
    good = await value(admin, name)
    key = bytes.fromhex(name.removeprefix("embedding:"))
    planted = Record(
        vector=Vector(DType.FLOAT32, b"\0\0\x80\x3f" * 16), model="m", tokens=1, tokens_exact=True, stored_at_s=2**31
    )
    await admin.set(name, records.encode(key, planted, secret))
    client = await fresh(start_proxy, store, SECRET)
    assert await ask(client) == "MISS"
    assert await client.metric(INVALID, reason="tag") > 0
    assert records.decode(key, await value(admin, name), SECRET).vector == records.decode(key, good, SECRET).vector
    assert await ask(await fresh(start_proxy, store, SECRET)) == "HIT"


async def test_who_does_not_share_the_secret_replaces_once_and_fails_nothing(
    start_proxy: StartProxy, upstream: ScriptedUpstream, store: StoreSetting, admin: Redis
) -> None:
    """Each side pays once for what its own memory has not, and then leaves the other's record alone."""
    clients: list[Client] = []
    for n in range(6):
        secret = SECRET if n % 2 else None
        client = await fresh(start_proxy, store, secret)
        assert await ask(client) == "MISS"
        assert await client.metric(INVALID, reason="tag" if secret else "checksum") == pytest.approx(3 if n else 0)
        clients.append(client)
    assert upstream.items['"x"'] == 6
    (name,) = await names(admin)
    standing = await value(admin, name)
    for client in clients:
        assert [await ask(client) for _ in range(3)] == ["HIT"] * 3
    assert upstream.items['"x"'] == 6
    assert await value(admin, name) == standing
