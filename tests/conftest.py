"""Fixtures: an upstream, and proxies in front of it; `tests.support.servers` has those of Redis."""

import asyncio.constants
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector

from proxy.app import running
from tests.support.client import Client
from tests.support.scripted import ScriptedUpstream
from tests.support.settings import settings_for

pytest_plugins = ["tests.support.matrix", "tests.support.profiles", "tests.support.servers"]

# In debug mode asyncio notes for every step where it came from, ten frames deep, which was most of the tests' time.
asyncio.constants.DEBUG_STACK_DEPTH = 1  # type: ignore[misc]

StartProxy = Callable[..., Awaitable[Client]]


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream().serving() as upstream:
        yield upstream


@pytest.fixture
async def start_proxy(upstream: ScriptedUpstream, request: pytest.FixtureRequest) -> AsyncIterator[StartProxy]:
    """Start proxies in front of ``upstream``; keywords change their settings."""
    given = {"rate_limit_wait_s": 0.0} if request.node.get_closest_marker("relays_refusals") else {}
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(ClientSession(connector=TCPConnector(limit=0), auto_decompress=False))

        async def start(
            *,
            clock: Callable[[], float] = time.time,
            monotonic: Callable[[], float] = time.monotonic,
            write_log: Callable[[str], object] | None = None,
            **changes: Any,
        ) -> Client:
            settings = settings_for(upstream, **given | changes)
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
