"""The log of replaced values in Redis: trimmed, lost with the server's data, refused, and while its server is down."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from proxy.cache.redis import changes
from proxy.cache.redis.changes import Position, announcements
from proxy.cache.redis.names import CHANGES_NAME
from proxy.cache.redis.store import RedisStore
from proxy.errors import StoreError
from tests.support.dict_store import key_of as key
from tests.support.dict_store import look_up, make_cache, record
from tests.support.redis_cluster import RedisCluster, ask, until
from tests.support.redis_server import RedisServer

FIRST, SECOND = b"[1.0,0.5]", b"[2.0,0.5]"
OpenStore = Callable[..., RedisStore]


@pytest.fixture
async def open_store(redis_server: RedisServer) -> AsyncIterator[OpenStore]:
    stores: list[RedisStore] = []

    def open_(url: str = redis_server.url) -> RedisStore:
        stores.append(RedisStore(url, timeout_s=1.0, max_connections=8))
        return stores[-1]

    yield open_
    for store in stores:
        await store.aclose()


async def read(store: RedisStore) -> tuple[set[bytes], bool]:
    """All that is new in the log, and whether it is complete."""
    keys: set[bytes] = set()
    is_complete = has_more = True
    while has_more:
        part = await store.changes()
        keys |= set(part.keys)
        is_complete &= part.is_complete
        has_more = part.has_more
    return keys, is_complete


async def replace(store: RedisStore, *numbers: int) -> None:
    await store.put_many({key(n): b"x" for n in numbers}, ttl_s=None, overwrite=True)


async def test_a_replacement_is_announced_before_it_is_done_and_after_it(admin: Redis, open_store: OpenStore) -> None:
    async with admin.monitor() as monitor:
        commands = monitor.listen()
        await replace(open_store(), 1)
        sent = [(await anext(commands))["command"].split()[0] for _ in range(3)]
    assert sent == ["XADD", "SET", "XADD"]


async def test_storing_what_is_new_announces_nothing(admin: Redis, open_store: OpenStore) -> None:
    await open_store().put_many({key(1): b"x"}, ttl_s=None, overwrite=False)
    assert await admin.exists(CHANGES_NAME) == 0


async def test_a_process_that_dies_before_the_replacement_leaves_the_others_with_what_stands(
    admin: Redis, open_store: OpenStore
) -> None:
    writer, reader = make_cache(open_store()), make_cache(open_store())
    await writer.write({key(1): record(1.0)}, overwrite=False)
    assert await look_up(reader, key(1)) == {key(1): FIRST}
    await admin.xadd(CHANGES_NAME, {"keys": key(1)})
    await reader.feed.poll()
    assert reader.peek([key(1)], min_stored_at_s=0) == {}
    assert await look_up(reader, key(1)) == {key(1): FIRST}
    await writer.write({key(1): record(2.0)}, overwrite=True)
    await reader.feed.poll()
    assert await look_up(reader, key(1)) == {key(1): SECOND}


async def test_the_log_is_bounded_and_a_reader_that_was_away_notices(
    admin: Redis, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_EVENTS", 200)
    writer, reader = open_store(), open_store()
    await replace(writer, 0)
    assert await read(reader) == ({key(0)}, True)
    for _ in range(10):
        await replace(writer, *range(64 * 40))
    assert 200 <= await admin.xlen(CHANGES_NAME) < 400
    assert await read(reader) == (set(map(key, range(64 * 40))), False)
    await replace(writer, 1)
    assert await read(reader) == ({key(1)}, True)


async def test_a_server_that_has_lost_its_data_loses_no_later_announcement(admin: Redis, open_store: OpenStore) -> None:
    writer, reader = open_store(), open_store()
    await replace(writer, 1, 2)
    assert await read(reader) == ({key(1), key(2)}, True)
    await admin.flushall()
    assert await read(reader) == (set(), True)  # what is in memory may be all that is left
    await replace(writer, 3)
    assert await read(reader) == ({key(3)}, True)
    await admin.flushall()
    await admin.xadd(CHANGES_NAME, {"keys": key(4)}, id="1-1")  # a master whose clock is behind
    assert await read(reader) == ({key(4)}, True)


async def test_what_another_program_writes_to_the_log_means_all_keys(admin: Redis, open_store: OpenStore) -> None:
    reader = open_store()
    await admin.xadd(CHANGES_NAME, {"keys": b"x" * 33})
    assert await read(reader) == (set(), False)
    await admin.xadd(CHANGES_NAME, {"a": "b", "c": "d"})
    assert await read(reader) == (set(), False)
    await admin.xadd(CHANGES_NAME, {"keys": key(1)})
    assert await read(reader) == ({key(1)}, True)


async def test_a_log_of_another_type_fails_no_write(
    admin: Redis, open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    await admin.set(CHANGES_NAME, "x")
    await replace(store, 1)
    await replace(store, 2)
    assert await store.get_many([key(1)], timeout_s=5.0) == {key(1): b"x"}
    with pytest.raises(StoreError) as failure:
        await store.changes()
    assert failure.value.reason == "refused"
    assert caplog.text.count("Redis refuses its log of replaced entries") == 1


async def test_what_a_full_server_does_not_announce_is_announced_later(
    tmp_path: Path, open_store: OpenStore, program: str
) -> None:
    server = RedisServer(tmp_path, program=program)
    store, reader = open_store(server.url), open_store(server.url)
    await store.put_many({key(1): b"old"}, ttl_s=None, overwrite=False)
    server.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StoreError):
        await replace(store, 1)
    await store.changes()
    assert await read(reader) == (set(), True)
    server.command("CONFIG", "SET", "maxmemory", "0")
    await store.changes()
    assert await read(reader) == ({key(1)}, True)
    server.kill()


async def test_announcements_wait_for_the_node_of_the_log(tmp_path: Path, open_store: OpenStore, program: str) -> None:
    """While it is down, the values of other nodes are replaced all the same."""
    cluster = RedisCluster(tmp_path, masters=2, program=program)
    store, reader = open_store(cluster.url), open_store(cluster.url)
    home = next(node for node in cluster.nodes if _has(cluster, node, CHANGES_NAME))
    mine = [key(n) for n in range(100) if not _has(cluster, home, f"embedding:{key(n).hex()}")][:5]
    await reader.changes()
    home.kill()
    await store.put_many(dict.fromkeys(mine, b"x"), ttl_s=None, overwrite=True)
    assert await store.get_many(mine, timeout_s=5.0) == dict.fromkeys(mine, b"x")
    with pytest.raises(StoreError):
        await store.changes()
    home.restart()
    until(lambda: all(cluster.info(node)["cluster_state"] == "ok" for node in cluster.nodes), "the cluster is up")
    for its in (store, reader):
        for member in its._servers._members.values():  # type: ignore[attr-defined]
            member.breaker._cooled_at_s = 0.0  # the clock has gone on
    await store.changes()
    assert await read(reader) == (set(mine), True)
    cluster.kill()


def _has(cluster: RedisCluster, node: RedisServer, name: str) -> bool:
    return int(ask(node, "CLUSTER KEYSLOT", name)) in cluster.slots(node)


def test_many_keys_are_announced_as_all() -> None:
    ((keys, command),) = announcements([bytes(32)] * (changes.MAX_ANNOUNCED_KEYS + 1))
    assert (len(keys), command[-1]) == (changes.MAX_ANNOUNCED_KEYS + 1, b"")


@given(st.recursive(st.none() | st.binary(max_size=40) | st.integers(), lambda inner: st.lists(inner, max_size=4)))
def test_a_reply_means_keys_or_is_refused(reply: object) -> None:
    position = Position()
    try:
        part = position.advance(reply)
    except ValueError:
        return
    assert all(isinstance(key, bytes) and len(key) == 32 for key in part.keys)
