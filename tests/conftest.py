"""Fixtures: a real Redis, an upstream, and proxies in front of it."""

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector
from hypothesis import HealthCheck, settings

from proxy.config import MIB, Settings, StoreSetting, UpstreamSetting
from proxy.providers import PROVIDERS
from proxy.server import running
from tests.client import Client
from tests.redis_cluster import RedisCluster, RedisSentinels
from tests.redis_server import RedisServer
from tests.scripted import ScriptedUpstream

# No deadline: a test is about what is right, not about how fast a busy machine gets there.
settings.register_profile("default", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("slow", parent=settings.get_profile("default"), max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

pytest_plugins = ["tests.matrix"]

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


def settings_for(upstream: ScriptedUpstream, /, provider: str = "generic", **changes: Any) -> Settings:
    plain = Settings(
        host="127.0.0.1",
        port=0,
        admin_host="127.0.0.1",
        admin_port=0,
        upstream=UpstreamSetting(name="scripted", base_url=upstream.base_url, provider=PROVIDERS[provider]),
        store=StoreSetting(),
        store_limit_bytes=64 * MIB,
        memory_bytes=64 * MIB,
        ttl_s=None,
        max_body_bytes=64 * MIB,
        reports_full_usage=False,
        log_format="console",
        batch_window_s=0.01,
        max_batch_items=None,
        max_queued_items=100_000,
        max_held_bytes=1024 * MIB,
        upstream_concurrency=64,
        upstream_connect_timeout_s=10.0,
        upstream_read_timeout_s=60.0,
        upstream_timeout_s=60.0,
        drain_delay_s=0.0,
        shutdown_timeout_s=10.0,
        # Generous: a test must not turn a busy machine into a store that failed.
        store_budget_s=5.0,
    )
    return replace(plain, **changes)


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
