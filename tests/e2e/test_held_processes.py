"""Requests that a rate limit holds, in a proxy as a user runs it: it stops, their clients leave, nothing waits."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.scripted import Call, ScriptedUpstream

SHUTDOWN_S = 4.0
BODY = {"model": "m", "input": "x"}
# Nothing in it is the proxy's to change.
REFUSAL = b'{"error": {"message": "Rate limit reached for m in organization org-1.", "code": "rate_limit_exceeded"}}'


async def started(folder: Path, upstream: ScriptedUpstream, *arguments: str) -> Process:
    given = ("--upstream", upstream.base_url, "--store", "memory:", *arguments)
    return await asyncio.to_thread(Process, folder, free_port(), *given)


def refusing(upstream: ScriptedUpstream, headers: dict[str, str]) -> asyncio.Event:
    """Set once a call was refused."""
    refused = asyncio.Event()

    def reply(_: Call) -> web.Response:
        refused.set()
        return web.Response(status=429, body=REFUSAL, headers=headers, content_type="application/json")

    upstream.reply = reply
    return refused


async def until_held(session: ClientSession, process: Process, items: int) -> None:
    name = "embedding_proxy_upstream_rate_limited_items"
    while True:
        async with session.get(f"{process.admin_url}/metrics") as response:
            if f"{name} {float(items)}" in await response.text():
                return


async def test_what_is_held_when_it_stops_is_told_to_try_again(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    refused = refusing(upstream, {"Retry-After": "30"})
    process = await started(tmp_path, upstream, "--shutdown-timeout", f"{SHUTDOWN_S:g}s", "--drain-delay", "0s")
    async with ClientSession() as session:
        request = asyncio.create_task(session.post(f"{process.base_url}/embeddings", json=BODY))
        await refused.wait()
        await until_held(session, process, 1)
        began_s = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        response = await request
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert time.monotonic() - began_s <= SHUTDOWN_S
    status, rest = await asyncio.to_thread(process.wait)
    assert status == 0, rest
    assert len(upstream.calls) == 1


async def test_what_the_limit_takes_in_time_is_answered_while_it_stops(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    refused = refusing(upstream, {"retry-after-ms": "500"})
    process = await started(tmp_path, upstream, "--shutdown-timeout", "60s", "--drain-delay", "0s")
    async with ClientSession() as session:
        request = asyncio.create_task(session.post(f"{process.base_url}/embeddings", json=BODY))
        await refused.wait()
        upstream.reply = upstream.embed
        process.popen.send_signal(signal.SIGTERM)
        response = await request
        assert (response.status, response.headers["Connection"]) == (200, "close")
        assert int(response.headers["X-RateLimit-Wait-Ms"]) >= 1
        await response.read()
    status, rest = await asyncio.to_thread(process.wait)
    assert status == 0, rest


async def test_nothing_is_sent_for_a_client_that_left(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    refused = refusing(upstream, {"retry-after-ms": "2000"})
    process = await started(tmp_path, upstream)
    async with ClientSession() as session:
        request = asyncio.create_task(session.post(f"{process.base_url}/embeddings", json=BODY))
        await refused.wait()
        await until_held(session, process, 1)
        upstream.reply = upstream.embed
        request.cancel()
        await until_held(session, process, 0)
        async with session.post(f"{process.base_url}/embeddings", json={"model": "m", "input": "other"}) as response:
            assert response.status == 200  # once the limit takes calls again
    await asyncio.to_thread(process.stop, signal.SIGTERM)
    assert [call.items for call in upstream.calls] == [["x"], ["other"]]


def refusal(status: int, headers: dict[str, str]) -> Callable[[Call], web.Response]:
    return lambda _: web.Response(status=status, body=REFUSAL, headers=headers, content_type="application/json")


@pytest.mark.parametrize(
    "reply",
    [
        refusal(429, {"Retry-After": "7", "x-ratelimit-remaining-requests": "0", "x-secret": "1"}),
        refusal(429, {}),
        refusal(503, {"Retry-After": "7"}),
        refusal(529, {"retry-after-ms": "70"}),
        refusal(200, {}),
    ],
)
async def test_without_waiting_refusals_are_relayed_to_the_byte(
    upstream: ScriptedUpstream, tmp_path: Path, reply: Callable[[Call], web.Response]
) -> None:
    upstream.reply = reply
    process = await started(tmp_path, upstream, "--rate-limit-wait", "0s")
    async with ClientSession() as session:
        for n in range(3):
            direct, relayed = [
                await session.post(f"{base_url}/embeddings", json={"model": "m", "input": f"{n}"})
                for base_url in (upstream.base_url, process.base_url)
            ]
            assert (relayed.status, await relayed.read()) == (direct.status, await direct.read())
            own = {name: value for name, value in relayed.headers.items() if name in direct.headers}
            assert own.keys() == direct.headers.keys()
            for name in set(direct.headers) - {"Date", "Server"}:
                assert own[name] == direct.headers[name], name
            assert "X-RateLimit-Wait-Ms" not in relayed.headers
    await asyncio.to_thread(process.stop, signal.SIGTERM)
    assert len(upstream.calls) == 6
