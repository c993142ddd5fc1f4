import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from proxy.cache.redis.store import RedisStore
from proxy.errors import StoreError
from tests.support.dict_store import key_of as key
from tests.support.dict_store import make_cache, record, served, written
from tests.support.redis_server import RedisServer, free_port


def name(number: int) -> str:
    return "embedding:" + key(number).hex()


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis_server.url, timeout_s=5.0, max_connections=8)
    yield store
    await store.aclose()


async def calls(admin: Redis, command: str) -> int:
    stats = await admin.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_a_long_read_is_sent_in_chunks_of_128(store: RedisStore, admin: Redis) -> None:
    before = await calls(admin, "mget")
    await store.get_many([key(n) for n in range(300)], timeout_s=5.0)
    assert await calls(admin, "mget") == before + 3


async def test_redis_expires_records_by_the_ttl(store: RedisStore, admin: Redis) -> None:
    await store.put_many({key(1): b"x"}, ttl_s=100.0, overwrite=False)
    await store.put_many({key(2): b"x"}, ttl_s=None, overwrite=False)
    assert 90_000 < await admin.pttl(name(1)) <= 100_000
    assert await admin.pttl(name(2)) == -1


async def test_a_key_of_another_type_is_a_miss_and_can_be_overwritten(store: RedisStore, admin: Redis) -> None:
    await admin.rpush(name(1), "a", "b")
    assert await store.get_many([key(1)], timeout_s=5.0) == {}
    assert await store.put_many({key(1): b"x"}, ttl_s=None, overwrite=False) == {}
    await store.put_many({key(1): b"x"}, ttl_s=None, overwrite=True)
    assert await store.get_many([key(1)], timeout_s=5.0) == {key(1): b"x"}


async def test_a_key_of_another_type_is_replaced_by_the_item(store: RedisStore, admin: Redis) -> None:
    await admin.rpush(name(1), "a", "b")
    assert await store.put_many({key(1): b"x", key(2): b"x"}, ttl_s=100.0, overwrite=False) == {}
    assert await store.get_many([key(1), key(2)], timeout_s=5.0) == {key(1): b"x", key(2): b"x"}
    assert await admin.pttl(name(1)) > 0


async def test_replicas_respond_while_redis_is_slow_and_serve_one_vector_afterwards(
    tmp_path: Path, program: str
) -> None:
    server = RedisServer(tmp_path, program=program)
    caches = [make_cache(RedisStore(server.url, timeout_s=60.0, max_connections=8), timeout_s=0.01) for _ in range(2)]
    for cache in caches:
        await cache.write({key(0): record(9.0)}, overwrite=False)  # it is connected
    server.process.send_signal(signal.SIGSTOP)
    mine = [await cache.write({key(1): record(float(n))}, overwrite=False) for n, cache in enumerate(caches)]
    assert [served(entries) for entries in mine] == [{key(1): b"[0.0,0.5]"}, {key(1): b"[1.0,0.5]"}]
    server.process.send_signal(signal.SIGCONT)
    await asyncio.gather(*map(written, caches))
    results = [served(cache.peek_confirmed([key(1)], min_stored_at_s=0).found) for cache in caches]
    assert results[0] == results[1] == served({key(1): mine[0][key(1)].current})
    assert len(results[0]) == 1
    for cache in caches:
        await cache.aclose()
    server.kill()


async def test_a_partly_refused_write_reports_which_values_were_stored(tmp_path: Path, program: str) -> None:
    server = RedisServer(tmp_path, program=program)
    server.command("ACL", "SETUSER", "some", "on", ">secret", "resetkeys", f"~{name(1)}", f"~{name(2)}", "+@all")
    store = RedisStore(server.url.replace("redis://", "redis://some:secret@"), timeout_s=5.0, max_connections=8)
    await store.put_many({key(1): b"first"}, ttl_s=None, overwrite=False)
    with pytest.raises(StoreError) as refused:
        await store.put_many({key(n): b"x" for n in range(1, 4)}, ttl_s=None, overwrite=False)
    assert (refused.value.reason, refused.value.found) == ("refused", {key(1): b"first"})
    assert refused.value.accepted == {key(2)}
    await store.aclose()
    server.kill()


async def test_a_full_redis_refuses_writes_and_still_reads(tmp_path: Path, program: str) -> None:
    server = RedisServer(tmp_path, program=program)
    store = RedisStore(server.url, timeout_s=5.0, max_connections=8)
    await store.put_many({key(1): b"x"}, ttl_s=None, overwrite=False)
    async with Redis.from_url(server.url) as admin:
        await admin.config_set("maxmemory", "1")
    with pytest.raises(StoreError) as refused:
        await store.put_many({key(1): b"y", key(2): b"y"}, ttl_s=None, overwrite=False)
    assert refused.value.reason == "refused"
    assert await store.get_many([key(1), key(2)], timeout_s=5.0) == {key(1): b"x"}
    await store.aclose()
    server.kill()


async def test_no_server_is_an_error_at_once(tmp_path: Path, program: str) -> None:
    store = RedisStore(f"redis://127.0.0.1:{free_port()}/0", timeout_s=5.0, max_connections=8)
    with pytest.raises(StoreError) as refused:
        await store.get_many([key(1)], timeout_s=5.0)
    assert refused.value.reason == "connection"
    with pytest.raises(StoreError):
        await store.put_many({key(1): b"x"}, ttl_s=None, overwrite=False)
    await store.aclose()


async def test_a_server_that_accepts_and_sends_nothing_times_out(tmp_path: Path, program: str) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    store = RedisStore(f"redis://127.0.0.1:{port}/0", timeout_s=0.05, max_connections=8)
    with pytest.raises(StoreError) as refused:
        await store.get_many([key(1)], timeout_s=5.0)
    assert refused.value.reason == "timeout"
    await store.aclose()
    silent.close()


async def test_closing_ends_reads_in_progress() -> None:
    asked = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        asked.set()
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    store = RedisStore(f"redis://127.0.0.1:{port}/0", timeout_s=60.0, max_connections=8)
    reading = asyncio.create_task(store.get_many([key(1)], timeout_s=60.0))
    await asked.wait()
    await store.aclose()
    with pytest.raises(StoreError):
        await reading
    silent.close()


@pytest.mark.parametrize(
    "reply",
    [b"-MOVED nonsense\r\n", b"-ASK 1 x\r\n", b"-MOVED 99999 h:1\r\n", b"%1\r\n*0\r\n+b\r\n", b"+OK\r\n", b":1\r\n"],
)
async def test_an_invalid_reply_is_a_store_error(reply: bytes) -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(reply)
        writer.close()

    liar = await asyncio.start_server(lie, "127.0.0.1", 0)
    port = liar.sockets[0].getsockname()[1]
    store = RedisStore(f"redis://127.0.0.1:{port}/0", timeout_s=5.0, max_connections=8)
    for _ in range(2):
        with pytest.raises(StoreError):
            await store.get_many([key(1)], timeout_s=5.0)
    await store.aclose()
    liar.close()


async def test_a_restarted_server_is_used_again(tmp_path: Path, program: str) -> None:
    server = RedisServer(tmp_path, program=program)
    store = RedisStore(server.url, timeout_s=5.0, max_connections=8)
    await store.put_many({key(1): b"x"}, ttl_s=None, overwrite=False)
    server.kill()
    with pytest.raises(StoreError):
        await store.get_many([key(1)], timeout_s=5.0)
    server.restart()
    await store.put_many({key(1): b"y"}, ttl_s=None, overwrite=False)
    assert await store.get_many([key(1)], timeout_s=5.0) == {key(1): b"y"}
    await store.aclose()
    server.kill()


async def test_a_server_that_became_read_only_is_reconnected(tmp_path: Path, program: str) -> None:
    """Its name may be another server's by now."""
    server = RedisServer(tmp_path, program=program)
    store = RedisStore(server.url, timeout_s=5.0, max_connections=8)
    await store.put_many({key(1): b"x"}, ttl_s=None, overwrite=False)
    server.command("REPLICAOF", "127.0.0.1", "1")
    async with Redis.from_url(server.url) as admin:
        before = await admin.info("stats")
        with pytest.raises(StoreError, match="read only"):
            await store.put_many({key(2): b"x"}, ttl_s=None, overwrite=False)
        assert await store.get_many([key(1)], timeout_s=5.0) == {key(1): b"x"}
        after = await admin.info("stats")
    assert after["total_connections_received"] == before["total_connections_received"] + 1
    await store.aclose()
    server.kill()
