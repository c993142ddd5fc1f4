"""The order in which a Pod ends: what the app asks until its end is answered, and what it asked for is kept."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import ClientSession

from tests.deploy.pod import Pod
from tests.support.gate import Gate
from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.scripted import ScriptedUpstream

_MODEL = "text-embedding-3-small"
_DEADLINE_S = 10
# Asks, and does not handle SIGTERM: it is gone with its request under way.
_HASTY = """
import json, os, urllib.request
body = json.dumps({"model": "text-embedding-3-small", "input": "hello, world"}).encode()
headers = {"Content-Type": "application/json", "Authorization": "Bearer k"}
urllib.request.urlopen(urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/embeddings", body, headers))
"""


@asynccontextmanager
async def running(folder: Path, upstream: ScriptedUpstream, program: str | None = None) -> AsyncIterator[Pod]:
    pod = await asyncio.to_thread(Pod, folder, upstream.base_url, program)
    try:
        yield pod
    finally:
        await asyncio.to_thread(pod.kill)


async def are_kept(folder: Path, upstream: ScriptedUpstream, *texts: str) -> bool:
    """Whether the next Pod's proxy, with the same file, has them. A read that the machine was too busy for is a miss,
    so it is asked until it has them; what is asked ``only-if-cached`` can't come from the upstream."""
    store = f"sqlite:///{folder / 'cache.sqlite3'}"
    process = await asyncio.to_thread(Process, folder, free_port(), "--upstream", upstream.base_url, "--store", store)
    try:
        async with ClientSession(headers={"Authorization": "Bearer k"}) as session, asyncio.timeout(_DEADLINE_S):
            url = f"{process.base_url}/embeddings"
            # An answer of the upstream's, since nothing is served under a credential that it has not taken.
            async with session.post(url, json={"model": _MODEL, "input": "another"}) as answer:
                assert answer.status == 200
            while True:
                cached = {"Cache-Control": "only-if-cached"}
                body = {"model": _MODEL, "input": list(texts)}
                async with session.post(url, json=body, headers=cached) as answer:
                    if answer.status == 200:
                        return answer.headers["X-Cache"] == "HIT"
                await asyncio.sleep(0.01)
    except TimeoutError:
        return False
    finally:
        process.popen.terminate()
        await asyncio.to_thread(process.wait)


async def test_what_the_app_asks_until_its_end_is_answered(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    gate = Gate(upstream)
    async with running(tmp_path, upstream) as pod:
        await gate.calls(1)
        pod.tell_app()
        gate.open()
        # One answer that was on its way when it was told, and one that it asked for afterwards.
        assert await pod.app_ends() == (0, "hello, world MISS\ngoodbye, world MISS\n")
        await pod.tell_sidecar()
        assert (await pod.sidecar_ends())[0] == 0
    assert await are_kept(tmp_path, upstream, "hello, world", "goodbye, world")


async def test_what_nobody_waits_for_any_more_is_kept(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    gate = Gate(upstream)
    async with running(tmp_path, upstream, _HASTY) as pod:
        await gate.calls(1)
        pod.tell_app()
        assert (await pod.app_ends())[0] == -15
        await pod.tell_sidecar()
        gate.open()
        assert (await pod.sidecar_ends())[0] == 0
    assert await are_kept(tmp_path, upstream, "hello, world")
