"""Proxies with a record key on a shared Redis that others can write to."""

from collections.abc import AsyncIterator
from hashlib import blake2b

import pytest
import xxhash
from redis.asyncio import Redis

from proxy.config.settings import StoreSetting
from proxy.protocol import records
from proxy.protocol.records import Record, RecordKey
from proxy.protocol.vectors import DType, Vector
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.redis_server import RedisServer
from tests.support.scripted import ScriptedUpstream, vector

SECRET = b"s" * 32
RECORD_KEY = RecordKey(SECRET)
FORGED = ("tag", "key")  # what the critical alert is about
INVALID = "embedding_proxy_store_invalid_records_total"
PLANTED = Record(
    vector=Vector(DType.FLOAT32, b"\0\0\x80\x3f" * 16), model="m", tokens=1, tokens_exact=True, stored_at_s=2**31
)
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


async def test_proxies_with_the_same_secret_share_records(
    start_proxy: StartProxy, store: StoreSetting, admin: Redis
) -> None:
    assert await ask(await fresh(start_proxy, store, SECRET)) == "MISS"
    client = await fresh(start_proxy, store, SECRET)
    assert await ask(client) == "HIT"
    assert await client.metric(INVALID) == 0


@pytest.mark.parametrize(
    ("planted_with", "reason"),
    [
        pytest.param(None, "untagged", id="no tag"),
        pytest.param(RecordKey(b"t" * 32), "other-key", id="another record key's tag"),
    ],
)
async def test_planted_record_is_a_miss_and_is_replaced(
    start_proxy: StartProxy,
    store: StoreSetting,
    admin: Redis,
    planted_with: RecordKey | None,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await ask(await fresh(start_proxy, store, SECRET))
    (name,) = await names(admin)
    good = await value(admin, name)
    key = bytes.fromhex(name.removeprefix("embedding:"))
    await admin.set(name, records.encode(key, PLANTED, planted_with))
    client = await fresh(start_proxy, store, SECRET)
    assert await ask(client) == "MISS"
    assert await client.metric(INVALID, reason=reason) == 1
    assert await client.metric(INVALID) == 1
    assert [f"({reason})" in line for line in caplog.messages if "invalid records" in line] == [True]
    standing = await value(admin, name)
    assert records.decode(key, standing, RECORD_KEY).vector == records.decode(key, good, RECORD_KEY).vector
    assert await ask(await fresh(start_proxy, store, SECRET)) == "HIT"


async def test_forged_tags_and_copied_records_are_misses(
    start_proxy: StartProxy, store: StoreSetting, admin: Redis
) -> None:
    client = await fresh(start_proxy, store, SECRET)
    for text in ("x", "y"):
        await client.embed(text)
    first, second = await names(admin)
    tagged = records.encode(bytes.fromhex(first.removeprefix("embedding:")), PLANTED, RecordKey(b"t" * 32))[:-32]
    tagged += RECORD_KEY.id + bytes(16)
    await admin.set(second, await value(admin, first))
    await admin.set(first, tagged + xxhash.xxh3_64_digest(tagged))
    client = await fresh(start_proxy, store, SECRET)
    assert [await client.metric(INVALID, reason=reason) for reason in FORGED] == [0, 0]
    assert [(await client.embed(text)).cache for text in ("x", "y")] == ["MISS", "MISS"]
    assert [await client.metric(INVALID, reason=reason) for reason in FORGED] == [1, 1]
    client = await fresh(start_proxy, store, SECRET)
    assert [(await client.embed(text)).cache for text in ("x", "y")] == ["HIT", "HIT"]


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        pytest.param(None, SECRET, "untagged", id="turned on"),
        pytest.param(b"t" * 32, SECRET, "other-key", id="changed"),
        pytest.param(SECRET, None, "other-key", id="turned off"),
    ],
)
async def test_changing_the_record_key_raises_no_alert(
    start_proxy: StartProxy, store: StoreSetting, admin: Redis,
    before: bytes | None, after: bytes | None, reason: str,
) -> None:  # fmt: skip
    """Neither of forgery nor of damage, and each record is counted once, is a miss once, and is replaced."""
    texts = [str(number) for number in range(5)]
    await (await fresh(start_proxy, store, before)).embed(texts)
    client = await fresh(start_proxy, store, after)
    assert [(await client.embed(text)).cache for text in texts] == ["MISS"] * len(texts)
    assert await client.metric(INVALID, reason=reason) == len(texts)
    assert await client.metric(INVALID) == len(texts)
    client = await fresh(start_proxy, store, after)
    assert [(await client.embed(text)).cache for text in texts] == ["HIT"] * len(texts)
    assert await client.metric(INVALID) == 0


async def test_records_tagged_by_an_earlier_version_are_hits(
    start_proxy: StartProxy, store: StoreSetting, admin: Redis
) -> None:
    await ask(await fresh(start_proxy, store, None))
    (name,) = await names(admin)
    sealed = await value(admin, name)
    await admin.set(name, sealed + blake2b(sealed, key=blake2b(SECRET).digest(), digest_size=16).digest())
    client = await fresh(start_proxy, store, SECRET)
    assert await ask(client) == "HIT"
    assert await client.metric(INVALID) == 0


async def test_proxy_without_the_secret_replaces_records_once(
    start_proxy: StartProxy, upstream: ScriptedUpstream, store: StoreSetting, admin: Redis
) -> None:
    """Each side pays once for what its own memory has not, and then leaves the other's record alone."""
    clients: list[Client] = []
    for n in range(6):
        secret = SECRET if n % 2 else None
        client = await fresh(start_proxy, store, secret)
        assert await ask(client) == "MISS"
        # It is read three times, and is one record.
        assert await client.metric(INVALID, reason="untagged" if secret else "other-key") == (1 if n else 0)
        clients.append(client)
    assert upstream.items['"x"'] == 6
    (name,) = await names(admin)
    standing = await value(admin, name)
    for client in clients:
        await client.proxy.cache.feed.poll()
        assert [await ask(client) for _ in range(3)] == ["HIT"] * 3
    assert upstream.items['"x"'] == 6
    assert await value(admin, name) == standing
