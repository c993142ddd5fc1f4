"""A Redis user with exactly the permissions in docs/redis.md, and a read-only user."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from redis.asyncio import Redis
from redis.crc import key_slot

from proxy.cache.redis.store import RedisStore
from proxy.cache.store import Page, Purge, PurgedModels
from proxy.config.settings import BudgetSettings, StoreSetting
from proxy.errors import StoreError
from proxy.ledger.spending import SpendingBudget
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.dict_store import Clock, key_of, written
from tests.support.redis_cluster import RedisCluster, ask
from tests.support.redis_server import RedisServer
from tests.support.scripted import Call, ScriptedUpstream

DOCUMENTED = re.compile(r"ACL SETUSER embedding-proxy (?P<rules>.+)")
DOCS = Path(__file__).parents[2] / "docs" / "redis.md"


@pytest.fixture(autouse=True)
async def admin(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url, decode_responses=True) as admin:
        await admin.flushall()
        await admin.acl_log_reset()
        yield admin
        await admin.acl_deluser("embedding-proxy")


def allow(server: RedisServer, *without: str) -> StoreSetting:
    """Make the user of the documentation, but ``without`` some rules."""
    one, *_ = documented()
    server.command("ACL", "SETUSER", "embedding-proxy", *(rule for rule in one if rule not in without))
    return StoreSetting(url=f"redis://embedding-proxy:pa55@127.0.0.1:{server.port}/0")


def allow_in_cluster(cluster: RedisCluster, *without: str) -> StoreSetting:
    _, its, _ = documented()
    for node in cluster.nodes:
        node.command("ACL", "SETUSER", "embedding-proxy", "reset", *(rule for rule in its if rule not in without))
    return StoreSetting(url=cluster.url.replace("//", "//embedding-proxy:pa55@"))


def documented() -> list[list[str]]:
    """The rules for one server, for a cluster, and those that budgets need besides."""
    found = DOCUMENTED.findall(DOCS.read_text(encoding="utf-8"))
    return [rules.replace("PASSWORD", "pa55").split() for rules in found]


async def test_documented_user_has_all_permissions(
    start_proxy: StartProxy, upstream: ScriptedUpstream, redis_server: RedisServer, admin: Redis
) -> None:
    store = allow(redis_server)
    first, second = [await start_proxy(store=store, ttl_s=1000.0) for _ in range(2)]
    await first.proxy.cache.probe_store()
    texts = [str(n) for n in range(300)]
    miss = await first.embed(texts)
    assert miss.cache == "MISS"
    assert (await second.embed(["new"])).cache == "MISS"  # so that the credential is known here, too
    hit = await second.embed(texts)
    assert (hit.cache, hit.vectors) == ("HIT", miss.vectors)
    (name, *_) = await admin.keys("embedding:*")
    assert 0 < await admin.pttl(name) <= 1_000_000
    await one_upstream_computation(first, second, upstream, lambda: sets(admin))

    upstream.dimensions = 24  # another model by the same name
    assert (await first.embed("0", headers={"Cache_Control": "no-cache"})).cache == "MISS"
    third = await start_proxy(store=store, ttl_s=1000.0)
    await third.embed(["newer"])
    replaced = await third.embed("0")
    assert (replaced.cache, len(replaced.vectors[0])) == ("HIT", 24)
    for client in (first, second, third):
        await client.proxy.cache.feed.poll()
    assert len((await second.embed("0")).vectors[0]) == 24
    assert await admin.acl_log() == []  # it refused nothing
    for client in (first, second, third):
        assert "embedding_proxy_store_errors_total{" not in await exposition(client)


async def exposition(client: Client) -> str:
    async with client.session.get(client.proxy.admin_url + "/metrics") as response:
        return await response.text()


async def sets(admin: Redis) -> int:
    return int((await admin.info("commandstats"))["cmdstat_set"]["calls"])


async def one_upstream_computation(
    first: Client, second: Client, upstream: ScriptedUpstream, sets: Callable[[], Awaitable[int]]
) -> None:
    """Two replicas want the same: the lease of one is the other's wait."""
    gate = asyncio.Event()

    async def held(call: Call) -> web.StreamResponse:
        await gate.wait()
        return upstream.embed(call)

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


async def test_the_commands_on_a_store_need_one_more_rule(redis_server: RedisServer, admin: Redis) -> None:
    url = allow(redis_server).url or ""
    store = RedisStore(url, timeout_s=5.0, max_connections=4)
    await store.put_many({key_of(1): b"x", key_of(2): b"y"}, ttl_s=None, overwrite=False)
    with pytest.raises(StoreError, match="scan") as refused:
        await store.scan()
    assert refused.value.reason == "refused"
    await admin.acl_log_reset()
    redis_server.command("ACL", "SETUSER", "embedding-proxy", "+scan")
    assert await store.scan() == Page({key_of(1): b"x", key_of(2): b"y"}, None)
    await store.announce_purge(Purge(models={PurgedModels("*")}))
    assert await store.delete_many([key_of(1)]) == 1
    assert (await store.changes()).purge.models == {PurgedModels("*")}
    assert await admin.acl_log() == []
    await store.aclose()


async def test_another_database_needs_one_more_rule(
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
async def test_every_documented_rule_is_needed(
    start_proxy: StartProxy, redis_server: RedisServer, admin: Redis, rule: str
) -> None:
    client = await start_proxy(store=allow(redis_server, rule))
    assert (await client.embed("x")).status == 200
    assert await admin.acl_log() != []


def with_budgets(server: RedisServer, *without: str) -> StoreSetting:
    """The user of the documentation for a proxy with budgets, but ``without`` some of the rules that are for them."""
    store = allow(server)
    *_, more = documented()
    server.command("ACL", "SETUSER", "embedding-proxy", *(rule for rule in more if rule not in without))
    return store


BUDGETS = BudgetSettings(budgets=(SpendingBudget(name="all", tokens=100, is_shared=True),), fails_open=False)


async def test_documented_user_has_all_permissions_for_budgets_and_a_canary(
    start_proxy: StartProxy, redis_server: RedisServer, admin: Redis
) -> None:
    store, clock = with_budgets(redis_server), Clock()
    clock.now = time.time()  # the server's, by which counters expire
    more: dict[str, Any] = {"store": store, "budgets": BUDGETS, "clock": clock, "canary_interval_s": 3600.0}
    clients = [await start_proxy(on_drift="new-epoch", **more) for _ in range(2)]
    assert [(await client.embed("x" * 40)).cache for client in clients] == ["MISS", "HIT"]
    assert (await clients[1].embed("y" * 60)).status == 200
    assert [(await client.embed("z")).status for client in clients] == [429, 429]
    for canary in [client.proxy.canary for client in clients] * 2:
        assert canary is not None
        await canary.tick()
        await canary.epochs.advance(canary.in_use.current()[0].digest, 0)
        clock.now += 3600
    assert await clients[0].metric("embedding_proxy_canary_checks_total", verdict="first") == 1
    assert await admin.acl_log() == []
    for client in clients:
        assert "embedding_proxy_store_errors_total{" not in await exposition(client)
        assert await client.metric("embedding_proxy_budget_store_errors_total") == 0


@pytest.mark.parametrize("rule", ["+get", "+incrby", "+expireat", "~embedding-budget:*"])
async def test_every_documented_rule_of_budgets_is_needed(
    start_proxy: StartProxy, redis_server: RedisServer, admin: Redis, rule: str
) -> None:
    client = await start_proxy(store=with_budgets(redis_server, rule), budgets=BUDGETS)
    await client.embed("x")
    await client.embed("y")
    assert await admin.acl_log() != []
    has_failed = await client.metric("embedding_proxy_budget_store_errors_total") > 0
    assert has_failed == (rule != "+expireat")  # then it has counted


@pytest.mark.parametrize("rule", ["+xadd", "+xrange", "~embedding-changes"])
async def test_without_the_log_of_changes_everything_else_works(
    start_proxy: StartProxy, redis_server: RedisServer, admin: Redis, rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = [await start_proxy(store=allow(redis_server, rule)) for _ in range(2)]
    stored = await first.embed("x")
    assert (await first.embed("x", headers={"Cache_Control": "no-cache"})).vectors == stored.vectors
    await written(first.proxy.cache)
    for client in (first, second):
        await client.proxy.cache.feed.poll()
        assert (await client.embed("y")).status == 200
        assert (await client.embed("x")).cache == "HIT"
        assert "embedding_proxy_store_errors_total{" not in await exposition(client)
    assert await admin.acl_log() != []
    assert "The user needs +xadd +xrange ~embedding-changes" in caplog.text


async def test_read_only_user_serves_hits_and_fails_no_request(
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
    assert len(await admin.keys("embedding:*")) == len(texts)


async def test_wrong_password_fails_no_request(
    start_proxy: StartProxy, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    allow(redis_server)
    store = StoreSetting(url=f"redis://embedding-proxy:pa55w0rd@127.0.0.1:{redis_server.port}/0")
    client = await start_proxy(store=store)
    await client.proxy.cache.probe_store()
    assert [(await client.embed("x")).cache for _ in range(2)] == ["MISS", "HIT"]
    assert "store not available" in caplog.text
    assert "pa55w0rd" not in caplog.text


async def test_documented_cluster_user_has_all_permissions(
    start_proxy: StartProxy, redis_cluster: RedisCluster
) -> None:
    store = allow_in_cluster(redis_cluster)
    clients = await with_a_slot_on_the_move(start_proxy, redis_cluster, store, store)
    await clients[0].embed("0", headers={"Cache_Control": "no-cache"})
    await written(clients[0].proxy.cache)
    for client in clients:
        await client.proxy.cache.feed.poll()
    assert await clients[1].metric("embedding_proxy_memory_discarded_entries_total", reason="replaced") == 1
    assert [ask(node, "ACL LOG") for node in redis_cluster.nodes] == [[], [], []]  # they refused nothing
    for client in clients:
        assert "embedding_proxy_store_errors_total{" not in await exposition(client)


@pytest.mark.parametrize("rule", ["+get", "+set", "+asking", "+cluster|slots", "~embedding:*", "~embedding-lease:*"])
async def test_every_documented_cluster_rule_is_needed(
    start_proxy: StartProxy, redis_cluster: RedisCluster, rule: str
) -> None:
    unlimited = StoreSetting(url=redis_cluster.url)
    limited = allow_in_cluster(redis_cluster, rule)
    await with_a_slot_on_the_move(start_proxy, redis_cluster, unlimited, limited)
    assert [ask(node, "ACL LOG") for node in redis_cluster.nodes] != [[], [], []]


async def with_a_slot_on_the_move(
    start_proxy: StartProxy, cluster: RedisCluster, writes: StoreSetting, reads: StoreSetting
) -> list[Client]:
    """Two proxies, the second of which reads what the first has written while some of it is moved, and writes too."""
    cluster.flush()
    for node in cluster.nodes:
        ask(node, "ACL LOG", "RESET")
    texts = [str(n) for n in range(300)]
    first, second = [await start_proxy(store=store) for store in (writes, reads)]
    written = await first.embed(texts)
    source, target = cluster.nodes[:2]
    slot = key_slot(ask(source, "KEYS", "embedding:*")[0].encode())
    cluster.begin_moving(slot, target)
    cluster.move_keys(slot, target)
    await second.embed([f"new {n}" for n in range(20)])
    assert (await second.embed(texts)).vectors == written.vectors
    cluster.end_moving(slot, target)
    return [first, second]
