"""Fixtures: a real Redis, an upstream, and proxies in front of it."""

import asyncio.constants
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector

from proxy.server import running
from tests.client import Client
from tests.redis_cluster import RedisCluster, RedisSentinels
from tests.redis_server import RedisServer
from tests.scripted import ScriptedUpstream
from tests.settings import settings_for

pytest_plugins = ["tests.matrix", "tests.profiles"]

# In debug mode asyncio notes for every step where it came from, ten frames deep, which was most of the tests' time.
asyncio.constants.DEBUG_STACK_DEPTH = 1  # type: ignore[misc]

StartProxy = Callable[..., Awaitable[Client]]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters without replicas, which is quick to start."""
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"), masters=3)
    yield cluster
    cluster.kill()


@pytest.fixture(scope="session")
def redis_sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSentinels]:
    """One sentinel and a master without replicas."""
    sentinels = RedisSentinels(tmp_path_factory.mktemp("sentinels"), replicas=0, sentinels=1)
    yield sentinels
    sentinels.kill()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream().serving() as upstream:
        yield upstream


@pytest.fixture
async def start_proxy(upstream: ScriptedUpstream) -> AsyncIterator[StartProxy]:
    """Start proxies in front of ``upstream``; keywords change their settings."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(ClientSession(connector=TCPConnector(limit=0), auto_decompress=False))

        async def start(
            *,
            clock: Callable[[], float] = time.time,
            monotonic: Callable[[], float] = time.monotonic,
            write_log: Callable[[str], object] | None = None,
            **changes: Any,
        ) -> Client:
            settings = settings_for(upstream, **changes)
            proxy = await stack.enter_async_context(
                running(settings, clock=clock, monotonic=monotonic, write_log=write_log)
            )
            return Client(session, proxy)

        yield start


@pytest.fixture
async def client(start_proxy: StartProxy) -> Client:
    """A client of a proxy with nothing but memory."""
    return await start_proxy()


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    return tmp_path / "cache.sqlite3"
