"""Fixtures: an upstream, and proxies in front of it; `tests.support.servers` has those of Redis."""

import asyncio.constants
import asyncio.format_helpers
import time
import traceback
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

# In debug mode asyncio and aiohttp note for every callback, future, task and response where it came from, with lines of
# source, which was most of the tests' time. Tasks and futures keep the frame that asked for them; callbacks, none.
asyncio.constants.DEBUG_STACK_DEPTH = 1  # type: ignore[misc]
asyncio.format_helpers.extract_stack = lambda *_: []  # type: ignore[assignment]
traceback.extract_stack.__defaults__ = (None, 2)

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
