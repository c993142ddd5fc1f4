"""Draining has a deadline."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from proxy.app import lifecycle
from proxy.app.lifecycle import Lifecycle
from tests.support import proxy_log


async def test_a_part_that_hangs_is_abandoned_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifecycle, "_MIN_CLOSE_S", 0.0)
    closed: list[str] = []

    async def hang() -> None:
        await asyncio.Event().wait()

    async def close() -> None:
        closed.append("first")

    life = Lifecycle()
    async with AsyncExitStack() as stack:
        life.close_at_exit(stack, "first part", close)
        life.close_at_exit(stack, "second part", hang)
        life.drain(timeout_s=0.01)
        assert life.is_draining
    assert proxy_log.messages(caplog) == ["stopping: second part did not end in time"]
    assert closed == ["first"]
