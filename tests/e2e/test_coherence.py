"""What is refreshed through one process, every process on the same store serves after its next poll."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession

from proxy.config.settings import StoreSetting
from tests.conftest import StartProxy
from tests.support import workers
from tests.support.client import Client, UpstreamResponse
from tests.support.dict_store import written
from tests.support.redis_server import RedisServer
from tests.support.scripted import Call, ScriptedUpstream
from tests.support.servers import Servers

TEXTS = [f"text {number}" for number in range(20)]
REFRESH = {"Cache_Control": "no-cache"}
KINDS = ["sqlite", "one", "sentinel", pytest.param("cluster", marks=pytest.mark.cluster)]


@pytest.fixture
def store(request: pytest.FixtureRequest, servers: Servers, sqlite_path: Path) -> StoreSetting:
    if request.param == "sqlite":
        return StoreSetting(path=sqlite_path)
    return StoreSetting(url=servers.emptied(request.param, None))


def change_vectors(upstream: ScriptedUpstream) -> None:
    """From now on the model by the same name makes other vectors of the same length."""

    def reply(call: Call) -> object:
        data = [
            {"index": index, "embedding": [float(-len(item)), *range(1, upstream.dimensions)]}
            for index, item in enumerate(call.items)
        ]
        return upstream.embed(call, data=data)

    upstream.reply = reply  # type: ignore[assignment]


async def known_to(*clients: Client) -> list[UpstreamResponse]:
    """Every process has the texts in memory and its credential validated; their last responses."""
    for client in clients:
        await client.embed(f"warm-up of {client.origin}")
        await client.embed(TEXTS)
    for client in clients:
        await written(client.proxy.cache)
    responses = [await client.embed(TEXTS) for client in clients]
    assert {response.cache for response in responses} == {"HIT"}
    return responses


@pytest.mark.parametrize("store", KINDS, indirect=True)
async def test_a_refresh_through_one_proxy_reaches_the_other(
    start_proxy: StartProxy, upstream: ScriptedUpstream, store: StoreSetting
) -> None:
    one, other = [await start_proxy(store=store) for _ in range(2)]
    old = (await known_to(one, other))[0].vectors
    change_vectors(upstream)
    fresh = await one.embed(TEXTS[:5], headers=REFRESH)
    await written(one.proxy.cache)
    new = fresh.vectors + old[5:]
    assert new != old
    calls = len(upstream.calls)
    for client in (one, other):
        await client.proxy.cache.feed.poll()
        for _ in range(3):  # from the store, from memory, and by the bytes of the request
            response = await client.embed(TEXTS)
            assert (response.cache, response.vectors) == ("HIT", new)
    assert len(upstream.calls) == calls
    assert await other.metric("embedding_proxy_memory_discarded_entries_total", reason="replaced") == 5
    assert await other.metric("embedding_proxy_store_changes_age_seconds") < 60


@pytest.mark.parametrize("store", ["sqlite", "one"], indirect=True)
async def test_a_refresh_reaches_other_processes_without_a_poll_by_hand(
    start_proxy: StartProxy, upstream: ScriptedUpstream, store: StoreSetting
) -> None:
    one, other = [await start_proxy(store=store) for _ in range(2)]
    await known_to(one, other)
    change_vectors(upstream)
    new = (await one.embed(TEXTS, headers=REFRESH)).vectors

    async def is_new() -> bool:
        return (await other.embed(TEXTS)).vectors == new

    await workers.until(is_new)
    assert (await other.embed(TEXTS)).cache == "HIT"


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_refresh_through_one_worker_reaches_all(
    upstream: ScriptedUpstream, tmp_path: Path, redis_server: RedisServer, kind: str
) -> None:
    redis_server.command("FLUSHALL")
    store = redis_server.url if kind == "redis" else f"sqlite:///{tmp_path}/cache.sqlite3"
    with workers.proxy(tmp_path, upstream, "--store", store) as process:

        async def ask(**headers: str) -> bytes:
            """Over a connection of its own, so that the kernel chooses a worker anew."""
            body = {"model": "m", "input": "x", "encoding_format": "base64"}
            async with (
                ClientSession() as session,
                session.post(
                    f"{process.base_url}/embeddings", json=body, headers={"Authorization": "Bearer k"} | headers
                ) as response,
            ):
                return (await response.json())["data"][0]["embedding"]  # type: ignore[no-any-return]

        old = {await ask() for _ in range(30)}
        change_vectors(upstream)
        fresh = await ask(**{"Cache-Control": "no-cache"})
        assert fresh not in old

        async def is_everywhere() -> bool:
            return {await ask() for _ in range(30)} == {fresh}

        await workers.until(is_everywhere)
        assert [await ask() for _ in range(30)] == [fresh] * 30


async def test_while_redis_is_down_requests_go_on_and_afterwards_all_agree(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    server = RedisServer(tmp_path)
    clients = [await start_proxy(store=StoreSetting(url=server.url), store_timeout_s=0.5) for _ in range(2)]
    one, other = clients
    old = (await known_to(one, other))[0].vectors
    server.kill()
    for client in clients:
        await client.proxy.cache.feed.poll()
        assert (await client.embed(TEXTS)).vectors == old  # memory goes on
    change_vectors(upstream)
    new = (await one.embed(TEXTS, headers=REFRESH)).vectors
    server.restart()
    await agree(clients, lambda client: client.embed(TEXTS), new)
    server.kill()


async def agree(
    clients: list[Client], ask: Callable[[Client], Awaitable[UpstreamResponse]], vectors: list[list[float]]
) -> None:
    async def is_so() -> bool:
        responses = await asyncio.gather(*map(ask, clients))
        for client in clients:
            await written(client.proxy.cache)
            await client.proxy.cache.feed.poll()
        return [response.vectors for response in responses] == [vectors] * len(clients)

    await workers.until(is_so)
    assert await is_so()
