"""A cluster: redirections, and nodes that fail while others work."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from redis.crc import key_slot
from redis.exceptions import MovedError

from proxy.cache.redis.cluster import Cluster
from proxy.cache.redis.connection import Command
from proxy.cache.redis.node import Node
from proxy.cache.redis.store import RedisStore
from proxy.cache.redis.topology import TopologyRefresher
from proxy.errors import StoreError
from tests.support.dict_store import make_cache
from tests.support.redis_cluster import RedisCluster, ask
from tests.support.redis_server import RedisServer, free_port

KEYS = [number.to_bytes(32, "big") for number in range(300)]
VALUES = {key: b"value of " + key for key in KEYS}


def slot_of(key: bytes, prefix: str = "embedding:") -> int:
    return key_slot((prefix + key.hex()).encode())


@pytest.fixture
def cluster(redis_cluster: RedisCluster) -> RedisCluster:
    redis_cluster.flush()
    return redis_cluster


@pytest.fixture
def frail(tmp_path: Path, program: str) -> Iterator[RedisCluster]:
    """A cluster that a test may break."""
    cluster = RedisCluster(tmp_path, masters=3, program=program)
    yield cluster
    cluster.kill()


@pytest.fixture
async def stores() -> AsyncIterator[list[RedisStore]]:
    """Closed at the end."""
    stores: list[RedisStore] = []
    yield stores
    for store in stores:
        await store.aclose()


def open_store(stores: list[RedisStore], url: str, *, timeout_s: float = 5.0) -> RedisStore:
    stores.append(RedisStore(url, timeout_s=timeout_s, max_connections=8))
    return stores[-1]


def of_node(cluster: RedisCluster, node: RedisServer, prefix: str = "embedding:") -> set[bytes]:
    slots = cluster.slots(node)
    return {key for key in KEYS if slot_of(key, prefix) in slots}


async def test_each_node_has_the_keys_of_its_slots(cluster: RedisCluster, stores: list[RedisStore]) -> None:
    store = open_store(stores, cluster.url)
    assert await store.put_many(VALUES, ttl_s=1000.0, overwrite=False) == {}
    assert sum(ask(node, "DBSIZE") for node in cluster.masters) == len(KEYS)
    for node in cluster.masters:
        assert ask(node, "DBSIZE") > 50


async def test_reads_of_one_turn_are_one_exchange_with_each_node(
    cluster: RedisCluster, stores: list[RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(open_store(stores, cluster.url), memory_bytes=10_000_000)
    assert await cache.read(KEYS[:1], min_stored_at_s=0) == {}
    sent: list[int] = []
    run = Node.run

    async def counted(node: Node, commands: Sequence[Command]) -> list[object]:
        sent.append(len(commands))
        return await run(node, commands)

    monkeypatch.setattr(Node, "run", counted)
    await asyncio.gather(*(cache.read([key], min_stored_at_s=0) for key in KEYS[:100]))
    assert (len(sent), sum(sent)) == (3, 100)


async def test_a_read_does_not_wait_for_a_node_that_has_none_of_its_keys(
    cluster: RedisCluster, stores: list[RedisStore]
) -> None:
    store = open_store(stores, cluster.url)
    assert list(store.parts(KEYS[:2])) == [None]  # which node has what is not known yet
    await store.get_many(KEYS[:1], timeout_s=5.0)
    parts = store.parts(KEYS)
    assert {part for part in parts if part is not None} == {("127.0.0.1", node.port) for node in cluster.masters}
    assert sorted(key for keys in parts.values() for key in keys) == sorted(KEYS)
    for keys in parts.values():
        assert len(store.parts(keys)) == 1


async def test_a_slot_during_and_after_its_migration(cluster: RedisCluster, stores: list[RedisStore]) -> None:
    store = open_store(stores, cluster.url)
    await store.put_many(VALUES, ttl_s=None, overwrite=False)
    slot = slot_of(KEYS[0])
    source = cluster.owner(slot)
    target = next(node for node in cluster.masters if node is not source)
    beginner = key_of_slot(slot, 1)
    cluster.begin_moving(slot, target)
    # Not there yet: ASK, for reading and for the first who writes; and the second is told who was first.
    assert await store.get_many([*KEYS, beginner], timeout_s=5.0) == VALUES
    assert await store.put_many({beginner: b"1"}, ttl_s=None, overwrite=False) == {}
    assert await store.put_many({beginner: b"2"}, ttl_s=None, overwrite=False) == {beginner: b"1"}
    assert await store.lease_many([beginner], ttl_s=5.0) == {beginner}
    cluster.move_keys(slot, target)
    assert await store.get_many([*KEYS, beginner], timeout_s=5.0) == {**VALUES, beginner: b"1"}
    cluster.end_moving(slot, target)
    assert await store.get_many([*KEYS, beginner], timeout_s=5.0) == {**VALUES, beginner: b"1"}  # MOVED
    assert await store.put_many({beginner: b"3"}, ttl_s=None, overwrite=False) == {beginner: b"1"}
    redirected = redirections(source)
    assert min(redirected) > 0
    # It is asked there from now on.
    await store.get_many([beginner], timeout_s=5.0)
    assert redirections(source) == redirected


def redirections(node: RedisServer) -> tuple[int, int]:
    """How often it said ASK, and MOVED."""
    errors = ask(node, "INFO", "errorstats")
    asks, moves = (errors.get(f"errorstat_{word}", {"count": 0})["count"] for word in ("ASK", "MOVED"))
    return int(asks), int(moves)


def key_of_slot(slot: int, seed: int) -> bytes:
    """A key that nobody else has, in a certain slot."""
    number = seed * 2**64
    while slot_of(key := number.to_bytes(32, "big")) != slot:
        number += 1
    return key


async def test_a_dead_node_loses_the_keys_of_its_slots(frail: RedisCluster, stores: list[RedisStore]) -> None:
    store = open_store(stores, frail.url)
    await store.put_many(VALUES, ttl_s=None, overwrite=False)
    lost = of_node(frail, frail.masters[0])
    lost_leases = of_node(frail, frail.masters[0], "embedding-lease:")
    frail.masters[0].kill()
    for _ in range(10):
        with pytest.raises(StoreError) as failure:
            await store.get_many(KEYS, timeout_s=5.0)
        assert failure.value.found.keys() == VALUES.keys() - lost
        assert (failure.value.reason, failure.value.is_partial) == ("connection", True)
    # A question for lost keys alone is no reason to leave the other nodes alone, either.
    with pytest.raises(StoreError) as failure:
        await store.get_many(list(lost), timeout_s=5.0)
    assert failure.value.is_partial
    with pytest.raises(StoreError) as failure:
        await store.put_many(dict.fromkeys(KEYS, b"late"), ttl_s=None, overwrite=False)
    assert failure.value.found == {key: VALUES[key] for key in KEYS if key not in lost}
    # Who can't ask for a lease goes alone, and has those that could be asked for.
    assert await store.lease_many(KEYS, ttl_s=5.0) == set(KEYS)
    assert await store.lease_many(KEYS, ttl_s=5.0) == lost_leases
    for node in frail.masters[1:]:
        node.kill()
    for _ in range(2):
        with pytest.raises(StoreError) as failure:
            await store.get_many(KEYS, timeout_s=5.0)
    assert (failure.value.found, failure.value.is_partial) == ({}, False)


async def test_the_circuit_of_a_hanging_node_opens(cluster: RedisCluster, stores: list[RedisStore]) -> None:
    store = open_store(stores, cluster.url, timeout_s=0.2)
    await store.put_many(VALUES, ttl_s=None, overwrite=False)
    hung = cluster.masters[0]
    lost = of_node(cluster, hung)
    hung.process.send_signal(signal.SIGSTOP)
    shown = []
    try:
        for _ in range(30):
            with pytest.raises(StoreError) as failure:
                await store.get_many(KEYS, timeout_s=0.1)
            shown.append(str(failure.value))
            assert failure.value.is_partial
            assert failure.value.found.keys() <= VALUES.keys() - lost
    finally:
        hung.process.send_signal(signal.SIGCONT)
    assert f"127.0.0.1:{hung.port} failed a moment ago" in shown
    async with asyncio.timeout(60):
        while await found(store) != VALUES:
            await asyncio.sleep(0.01)


async def found(store: RedisStore) -> dict[bytes, bytes]:
    try:
        return await store.get_many(KEYS, timeout_s=5.0)
    except StoreError as error:
        return error.found


async def test_one_seed_that_replies_is_enough(cluster: RedisCluster, stores: list[RedisStore]) -> None:
    url = f"redis+cluster://127.0.0.1:{free_port()},{cluster.addresses.rpartition(',')[2]}"
    store = open_store(stores, url)
    await store.put_many(VALUES, ttl_s=None, overwrite=False)
    assert await store.get_many(KEYS, timeout_s=5.0) == VALUES


async def test_without_a_seed_that_replies_reads_fail_and_seeds_are_tried_again(stores: list[RedisStore]) -> None:
    store = open_store(stores, f"redis+cluster://127.0.0.1:{free_port()}")
    for _ in range(3):
        with pytest.raises(StoreError) as failure:
            await store.get_many(KEYS, timeout_s=5.0)
        assert (failure.value.reason, failure.value.is_partial) == ("connection", False)


async def test_a_server_that_is_no_cluster_is_an_error(redis_server: RedisServer, stores: list[RedisStore]) -> None:
    store = open_store(stores, redis_server.url.replace("redis", "redis+cluster", 1))
    with pytest.raises(StoreError, match="cluster support disabled"):
        await store.get_many(KEYS, timeout_s=5.0)


async def test_a_key_of_another_type_is_a_miss(cluster: RedisCluster, stores: list[RedisStore]) -> None:
    store = open_store(stores, cluster.url)
    ask(cluster.owner(slot_of(KEYS[1])), "RPUSH", "embedding:" + KEYS[1].hex(), "a", "b")
    assert await store.get_many([KEYS[1]], timeout_s=5.0) == {}
    await store.put_many({KEYS[1]: b"x"}, ttl_s=None, overwrite=True)
    assert await store.get_many([KEYS[1]], timeout_s=5.0) == {KEYS[1]: b"x"}


async def test_redirections_between_two_nodes_end() -> None:
    class Confused:
        def __init__(self, address: tuple[str, int]) -> None:
            self.address = address
            self.asked = 0

        async def run(self, commands: list[tuple[str, ...]]) -> list[object]:
            self.asked += 1
            if commands == [("CLUSTER", "SLOTS")]:
                return [[[0, 16383, [b"a", 1, b"id"]]]]
            other = "b" if self.address[0] == "a" else "a"
            return [MovedError(f"5 {other}:1")] * len(commands)

    nodes: dict[tuple[str, int], Confused] = {}

    def connect(address: tuple[str, int]) -> Confused:
        return nodes.setdefault(address, Confused(address))

    cluster = Cluster([("a", 1)], connect)  # type: ignore[arg-type]
    await cluster.ready(timeout_s=5.0)
    results: dict[str, object] = {}
    await cluster.run(("a", 1), {"x": ("GET", "x")}, results)
    assert "redirect" in str(results["x"])
    assert sum(node.asked for node in nodes.values()) <= 6


async def test_one_refresh_runs_however_many_requests_need_it() -> None:
    asked = 0
    reply = asyncio.Event()

    async def refresh() -> None:
        nonlocal asked
        asked += 1
        await reply.wait()

    refresher = TopologyRefresher(refresh)
    waiting = [asyncio.create_task(refresher.wait(timeout_s=5.0)) for _ in range(100)]
    await asyncio.sleep(0)
    reply.set()
    await asyncio.gather(*waiting)
    for _ in range(100):
        refresher.refresh_soon()
        await asyncio.sleep(0)
    assert asked == 1
    await refresher.aclose()
