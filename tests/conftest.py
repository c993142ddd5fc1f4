"""Fixtures: an upstream, and proxies in front of it; `tests.support.servers` has those of Redis."""

import asyncio.constants
import asyncio.format_helpers
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from traceback import FrameSummary, StackSummary
from types import FrameType
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector

from proxy.app import running
from tests.support.client import Client
from tests.support.scripted import ScriptedUpstream
from tests.support.settings import settings_for

pytest_plugins = ["tests.support.matrix", "tests.support.profiles", "tests.support.servers"]


def _frames_that_asked(f: FrameType | None = None, limit: int | None = None) -> StackSummary:
    """`traceback.extract_stack`, but of two frames, whose lines of source are read when they are printed."""
    frame = f or sys._getframe(1)
    frames = [frame] if frame.f_back is None else [frame.f_back, frame]
    asked = [FrameSummary(f.f_code.co_filename, f.f_lineno, f.f_code.co_name, lookup_line=False) for f in frames]
    return StackSummary.from_list(asked)


# In debug mode asyncio and aiohttp note for every callback, future, task and response where it came from, with lines of
# source, which was most of the tests' time. Tasks and futures keep the frames that asked for them; callbacks, none.
# asyncio's C code has the function itself, so its code is replaced.
asyncio.constants.DEBUG_STACK_DEPTH = 1  # type: ignore[misc]
asyncio.format_helpers.extract_stack = lambda *_: []  # type: ignore[assignment]
traceback.extract_stack.__code__ = _frames_that_asked.__code__

StartProxy = Callable[..., Awaitable[Client]]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: at the end of a run, each would leave the other processes without work."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


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
