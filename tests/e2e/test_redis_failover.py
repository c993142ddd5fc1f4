"""Several Redis servers behind two proxies under load, while masters die and slots move: no request fails, no vector is
wrong, and what is stored is found again."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proxy.config.settings import StoreSetting
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.redis_cluster import RedisCluster, RedisSentinels, ask, until
from tests.support.redis_server import RedisServer
from tests.support.scripted import ScriptedUpstream

pytestmark = pytest.mark.cluster

TEXTS = [f"text {number}" for number in range(300)]
WORKERS = 8
PASSES = 40  # requests to let go by, so that something happens under load


@pytest.fixture
def cluster(tmp_path: Path, program: str) -> Iterator[RedisCluster]:
    cluster = RedisCluster(tmp_path, masters=3, replicas=3, program=program)
    yield cluster
    cluster.kill()


@pytest.fixture
def sentinels(tmp_path: Path, program: str) -> Iterator[RedisSentinels]:
    sentinels = RedisSentinels(tmp_path, replicas=2, sentinels=3, program=program)
    yield sentinels
    sentinels.kill()


@dataclass
class Load:
    """Requests for a few texts each, half of them known, by turns through every proxy."""

    clients: list[Client]
    upstream: ScriptedUpstream
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    is_over: bool = False

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        working = [asyncio.create_task(self._work(number)) for number in range(WORKERS)]
        try:
            yield
        finally:
            self.is_over = True
            await asyncio.gather(*working)

    async def _work(self, number: int) -> None:
        dice = random.Random(number)
        serial = 0
        while not self.is_over:
            serial += 1
            texts = [*dice.sample(TEXTS, 4), f"new {number} {serial}"]
            answer = await self.clients[serial % len(self.clients)].embed(texts)
            self.outcomes[answer.cache if answer.status == 200 else str(answer.status)] += 1
            if answer.status == 200 and answer.vectors != right(self.upstream, texts):
                self.wrong.append(repr(texts))

    async def passes(self, requests: int = PASSES) -> None:
        """Let so many requests be answered."""
        end = self.outcomes.total() + requests
        while self.outcomes.total() < end:
            await asyncio.sleep(0.01)

    def check(self) -> None:
        assert set(self.outcomes) <= {"HIT", "PARTIAL", "MISS"}, self.outcomes
        assert self.wrong == []


def right(upstream: ScriptedUpstream, texts: list[str]) -> list[object]:
    return [upstream.embedding({"model": "m"}, text, upstream.dimensions) for text in texts]


async def in_time(is_so: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(until, is_so, what)


async def test_cluster_failover_and_slot_migration(
    start_proxy: StartProxy, upstream: ScriptedUpstream, cluster: RedisCluster
) -> None:
    store = StoreSetting(url=cluster.url)
    # Nothing to speak of in memory: what is known comes from the store.
    clients = [await start_proxy(store=store, store_timeout_s=0.05, memory_bytes=1) for _ in range(2)]
    await clients[0].embed(TEXTS)
    load = Load(clients, upstream)
    async with load.going_on():
        await load.passes()
        victim, heir = cluster.masters[0], cluster.nodes[3]
        victim.kill()
        await in_time(lambda: "master" in ask(heir, "ROLE"), "the replica is a master")
        await load.passes()
        await move_slots(cluster, heir, cluster.masters[1], load)
        await load.passes()
    load.check()
    assert load.outcomes["PARTIAL"] > 0
    await assert_all_is_found_again(start_proxy, store, clients[0])


async def move_slots(cluster: RedisCluster, source: RedisServer, target: RedisServer, load: Load) -> None:
    """Some slots with keys in them, in two halves, with requests for them at every stage."""
    slots = [slot for slot in sorted(cluster.slots(source)) if ask(source, "CLUSTER COUNTKEYSINSLOT", slot) > 0][:30]
    before = redirections(source)
    for stage in (
        lambda slot: cluster.begin_moving(slot, target),
        lambda slot: cluster.move_keys(slot, target, count=1),
        lambda slot: cluster.move_keys(slot, target),
        lambda slot: cluster.end_moving(slot, target),
    ):
        for slot in slots:
            await asyncio.to_thread(stage, slot)
        await load.passes()
    asks, moves = (now - then for now, then in zip(redirections(source), before, strict=True))
    assert (asks > 0, moves > 0) == (True, True)


def redirections(node: RedisServer) -> tuple[int, int]:
    """How often it said ASK, and MOVED."""
    errors = ask(node, "INFO", "errorstats")
    asks, moves = (errors.get(f"errorstat_{word}", {"count": 0})["count"] for word in ("ASK", "MOVED"))
    return int(asks), int(moves)


async def test_sentinel_failover(
    start_proxy: StartProxy, upstream: ScriptedUpstream, sentinels: RedisSentinels
) -> None:
    store = StoreSetting(url=sentinels.url)
    clients = [await start_proxy(store=store, store_timeout_s=0.05, memory_bytes=1) for _ in range(2)]
    await clients[0].embed(TEXTS)
    load = Load(clients, upstream)
    async with load.going_on():
        await load.passes()
        sentinels.master.kill()
        await in_time(lambda: any("master" in ask(replica, "ROLE") for replica in sentinels.replicas), "a new master")
        await load.passes()
    load.check()
    await assert_all_is_found_again(start_proxy, store, clients[0])


async def assert_all_is_found_again(start_proxy: StartProxy, store: StoreSetting, asked_before: Client) -> None:
    """What is asked now is stored, and a proxy that never saw it finds it."""
    fresh = await start_proxy(store=store)
    await fresh.embed("something new, so that the credential is known")
    for _ in range(200):
        await asked_before.embed(TEXTS)
        if (await fresh.embed(TEXTS)).cache == "HIT":
            break
        await asyncio.sleep(0.05)
        fresh = await start_proxy(store=store)
        await fresh.embed("something new, so that the credential is known")
    assert await fresh.metric("embedding_proxy_items_total", result="store") == len(TEXTS)
