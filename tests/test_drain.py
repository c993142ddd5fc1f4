"""How a process ends: nobody loses a request, and a second signal means now."""

import asyncio
import signal
from pathlib import Path

from aiohttp import ClientSession, web

from tests.process import Process
from tests.redis_server import free_port
from tests.rolling import rolling_restarts, until_not_ready
from tests.scripted import Call, ScriptedUpstream


async def test_restarts_under_load_fail_no_request(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async def slow(call: Call) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return upstream.embed(call)

    upstream.reply = slow
    tally = await rolling_restarts(tmp_path, upstream.base_url, restarts=3)
    assert tally.failures == []
    assert tally.exit_statuses == [0] * 3
    assert max(tally.exit_s) < 10
    assert tally.requests > 100


async def test_what_is_under_way_is_finished_and_kept(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    gate = asyncio.Event()
    arrived = asyncio.Event()

    async def held(call: Call) -> web.StreamResponse:
        arrived.set()
        await gate.wait()
        return upstream.embed(call)

    upstream.reply = held
    store = ("--store", f"sqlite:///{tmp_path / 'cache.sqlite3'}")
    process = await asyncio.to_thread(Process, tmp_path, free_port(), "--upstream", upstream.base_url, *store)
    body = {"model": "m", "input": "x"}
    async with ClientSession() as session:
        request = asyncio.create_task(session.post(f"{process.base_url}/embeddings", json=body))
        await arrived.wait()
        process.popen.send_signal(signal.SIGTERM)
        await until_not_ready(session, process)
        gate.set()
        answer = await request
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        await answer.read()
    status, rest = await asyncio.to_thread(process.wait)
    assert status == 0, rest
    again = await asyncio.to_thread(Process, tmp_path, free_port(), "--upstream", upstream.base_url, *store)
    async with ClientSession() as session, session.post(f"{again.base_url}/embeddings", json=body) as answer:
        assert answer.headers["X-Cache"] == "HIT"
    await asyncio.to_thread(again.stop, signal.SIGTERM)


async def test_a_second_signal_ends_it_at_once(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    arguments = ("--upstream", upstream.base_url, "--store", "memory:", "--drain-delay", "1h")
    process = await asyncio.to_thread(Process, tmp_path, free_port(), *arguments)
    process.popen.send_signal(signal.SIGTERM)
    async with ClientSession() as session:
        await until_not_ready(session, process)
        async with session.post(f"{process.base_url}/embeddings", json={"model": "m", "input": "x"}) as answer:
            assert answer.status == 200, "still accepting"
    status, _ = await asyncio.to_thread(process.stop, signal.SIGINT)
    assert status == 1


async def test_nobody_waits_longer_than_the_shutdown_timeout(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    arrived = asyncio.Event()

    async def hang(_: Call) -> web.StreamResponse:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    upstream.reply = hang
    arguments = ("--upstream", upstream.base_url, "--store", "memory:", "--shutdown-timeout", "100ms")
    process = await asyncio.to_thread(Process, tmp_path, free_port(), *arguments)
    async with ClientSession() as session:
        request = asyncio.create_task(session.post(f"{process.base_url}/embeddings", json={"model": "m", "input": "x"}))
        await arrived.wait()
        status, _ = await asyncio.to_thread(process.stop, signal.SIGTERM)
        await asyncio.gather(request, return_exceptions=True)
    assert status == 0, "though the upstream would have taken for ever"
