"""A Redis user that may do no more than docs/redis.md says, and one that may only read."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from redis.asyncio import Redis

from proxy.config import StoreSetting
from tests.client import Client
from tests.conftest import StartProxy
from tests.redis_server import RedisServer
from tests.scripted import Call, ScriptedUpstream

DOCUMENTED = re.compile(r"ACL SETUSER embedding-proxy (?P<rules>.+)")
DOCS = Path(__file__).parent.parent / "docs" / "redis.md"


@pytest.fixture(autouse=True)
async def admin(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url, decode_responses=True) as admin:
        await admin.flushall()
        await admin.acl_log_reset()
        yield admin
        await admin.acl_deluser("embedding-proxy")


def allow(server: RedisServer, *without: str) -> StoreSetting:
    """Make the user of the documentation, but ``without`` some rules."""
    documented = DOCUMENTED.search(DOCS.read_text(encoding="utf-8"))
    assert documented is not None
    rules = [rule for rule in documented["rules"].replace("PASSWORD", "pa55").split() if rule not in without]
    server.command("ACL", "SETUSER", "embedding-proxy", *rules)
    return StoreSetting(url=f"redis://embedding-proxy:pa55@127.0.0.1:{server.port}/0")


async def test_the_documented_user_can_do_all_that_is_needed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, redis_server: RedisServer, admin: Redis
) -> None:
    store = allow(redis_server)
    first, second = [await start_proxy(store=store, ttl_s=1000.0) for _ in range(2)]
    await first.proxy.cache.try_store()
    texts = [str(n) for n in range(300)]
    miss = await first.embed(texts)
    assert miss.cache == "MISS"
    assert (await second.embed(["new"])).cache == "MISS"  # so that the credential is known here, too
    hit = await second.embed(texts)
    assert (hit.cache, hit.vectors) == ("HIT", miss.vectors)
    (name, *_) = await admin.keys("embedding:*")
    assert 0 < await admin.pttl(name) <= 1_000_000
    await one_upstream_computation(first, second, upstream, admin)

    upstream.dimensions = 24  # another model by the same name
    assert (await first.embed("0", headers={"Cache_Control": "no-cache"})).cache == "MISS"
    third = await start_proxy(store=store, ttl_s=1000.0)
    await third.embed(["newer"])
    replaced = await third.embed("0")
    assert (replaced.cache, len(replaced.vectors[0])) == ("HIT", 24)
    assert await admin.acl_log() == []  # it refused nothing
    for client in (first, second, third):
        assert "embedding_proxy_store_errors_total{" not in await exposition(client)


async def exposition(client: Client) -> str:
    async with client.session.get(client.proxy.admin_url + "/metrics") as response:
        return await response.text()


async def one_upstream_computation(first: Client, second: Client, upstream: ScriptedUpstream, admin: Redis) -> None:
    """Two replicas want the same: the lease of one is the other's wait."""
    gate = asyncio.Event()

    async def held(call: Call) -> web.StreamResponse:
        await gate.wait()
        return upstream.embed(call)

    async def sets() -> int:
        return int((await admin.info("commandstats"))["cmdstat_set"]["calls"])

    upstream.reply = held
    before, sent = await sets(), len(upstream.calls)
    asking = [asyncio.create_task(client.embed("together")) for client in (first, second)]
    while await sets() < before + 2:  # each has tried for the lease
        await asyncio.sleep(0)
    gate.set()
    one, other = [await task for task in asking]
    assert one.vectors == other.vectors
    assert len(upstream.calls) == sent + 1
    upstream.reply = None


async def test_another_database_takes_one_rule_more(
    start_proxy: StartProxy, redis_server: RedisServer, admin: Redis
) -> None:
    store = allow(redis_server)
    assert store.url is not None
    elsewhere = StoreSetting(url=store.url.removesuffix("0") + "1")
    first = await start_proxy(store=elsewhere)
    assert [(await first.embed("x")).cache for _ in range(2)] == ["MISS", "HIT"]
    assert {entry["object"] for entry in await admin.acl_log()} == {"select"}
    redis_server.command("ACL", "SETUSER", "embedding-proxy", "+select")
    for _ in range(2):
        client = await start_proxy(store=elsewhere)
        await client.embed("warm-up")
        await client.embed("x")
    assert await client.metric("embedding_proxy_items_total", result="store") == 2


@pytest.mark.parametrize("rule", ["+mget", "+set", "~embedding:*", "~embedding-lease:*"])
async def test_no_rule_is_there_for_nothing(
    start_proxy: StartProxy, redis_server: RedisServer, admin: Redis, rule: str
) -> None:
    client = await start_proxy(store=allow(redis_server, rule))
    assert (await client.embed("x")).status == 200
    assert await admin.acl_log() != []


async def test_a_user_that_may_only_read_serves_hits_and_fails_nothing(
    start_proxy: StartProxy, upstream: ScriptedUpstream, redis_server: RedisServer, admin: Redis
) -> None:
    writer = await start_proxy(store=StoreSetting(url=redis_server.url))
    texts = [str(n) for n in range(20)]
    written = await writer.embed(texts)
    reader = await start_proxy(store=allow(redis_server, "+set"))
    for n in range(20):  # more than open a circuit
        assert (await reader.embed(f"new {n}")).status == 200
    sent = len(upstream.calls)
    hit = await reader.embed(texts)
    assert (hit.cache, hit.vectors, len(upstream.calls)) == ("HIT", written.vectors, sent)
    assert (await reader.embed([*texts, "one more"])).cache == "PARTIAL"
    assert (await reader.embed("0", headers={"Cache_Control": "no-cache"})).status == 200
    assert await reader.metric("embedding_proxy_store_errors_total", operation="write", reason="refused") > 0
    assert await reader.metric("embedding_proxy_breaker_state", circuit="store_read") == 0
    assert len(await admin.keys("*")) == len(texts)


async def test_a_wrong_password_costs_hits_and_no_request(
    start_proxy: StartProxy, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    allow(redis_server)
    store = StoreSetting(url=f"redis://embedding-proxy:pa55w0rd@127.0.0.1:{redis_server.port}/0")
    client = await start_proxy(store=store)
    await client.proxy.cache.try_store()
    assert [(await client.embed("x")).cache for _ in range(2)] == ["MISS", "HIT"]
    assert "the store does not work" in caplog.text
    assert "pa55w0rd" not in caplog.text
