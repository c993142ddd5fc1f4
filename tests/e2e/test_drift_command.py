"""The canary of a proxy as a user starts it, with an upstream that changes: each change gets its verdict."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from proxy.errors import UpstreamUnreachable
from tests.support.client import HttpClient
from tests.support.drifting import CHANGES, DriftingModel
from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.scripted import Call, ScriptedUpstream
from tests.support.workers import until

# The command, by a clock that is ahead by what a file says, and that looks often whether a check is due.
PROGRAM = """
import sys, time
from pathlib import Path
ahead, real = Path(sys.argv.pop(1)), time.time
time.time = lambda: real() + float(ahead.read_text())
from proxy.app import drift
drift.TICK_S = 0.05
from proxy.cli.commands import main
main()
"""
CHECKS = "embedding_proxy_canary_checks_total"
INTERVAL_S = 6 * 3600


class Canary:
    """A proxy with a canary, and the clock that it goes by."""

    def __init__(self, folder: Path, upstream: ScriptedUpstream, session: ClientSession) -> None:
        self._ahead = folder / "ahead"
        self._checks = 0
        self.pass_time(0)
        store = f"sqlite:///{folder / 'cache.sqlite3'}"
        arguments = (
            "--upstream",
            upstream.base_url,
            "--canary",
            "6h",
            "--store",
            store,
            "--upstream-read-timeout",
            "1s",
        )
        program = (sys.executable, "-c", PROGRAM, str(self._ahead))
        self.process = Process(folder, free_port(), *arguments, program=program)
        self.client = HttpClient(session, self.process.base_url, self.process.admin_url)

    def pass_time(self, intervals: float) -> None:
        written = self._ahead.with_suffix(".new")
        written.write_text(str(intervals * INTERVAL_S))
        written.replace(self._ahead)

    async def verdicts(self, checks: int) -> dict[str, float]:
        """How often each verdict was given, once there have been so many checks."""

        async def are_done() -> bool:
            return await self.client.metric(CHECKS) >= checks

        await until(are_done)
        samples = await self.client.samples()
        return {each.labels["verdict"]: each.value for each in samples if each.name == CHECKS and each.value}


@pytest.fixture
async def model(upstream: ScriptedUpstream) -> DriftingModel:
    model = DriftingModel()

    async def reply(call: Call) -> web.StreamResponse:
        if model.is_hung:
            await asyncio.Event().wait()
        if model.error is UpstreamUnreachable and call.request.transport is not None:
            call.request.transport.abort()
        return model.reply(call)

    upstream.reply = reply
    return model


@pytest.fixture
async def canary(tmp_path: Path, upstream: ScriptedUpstream, model: DriftingModel) -> AsyncIterator[Canary]:
    async with ClientSession(auto_decompress=False) as session:
        canary = await asyncio.to_thread(Canary, tmp_path, upstream, session)
        yield canary
        if canary.process.popen.poll() is None:
            await asyncio.to_thread(canary.process.stop, signal.SIGTERM)


async def test_every_change_gets_its_verdict(canary: Canary, model: DriftingModel) -> None:
    assert (await canary.client.embed("a")).status == 200
    expected = {"first": 1}
    assert await canary.verdicts(1) == expected
    changes = {name: change for name, change in CHANGES.items() if name != "timeout"}  # which is what "hangs" ends in
    for number, (apply, verdict) in enumerate(changes.values(), 1):
        model.__dict__.update(DriftingModel(calls=model.calls).__dict__)
        apply(model)
        canary.pass_time(number)
        expected[verdict] = expected.get(verdict, 0) + 1
        assert await canary.verdicts(number + 1) == expected
    # Clients are served all the same, and the alarm is not over: no later check has got vectors.
    assert (await canary.client.embed("a")).cache == "HIT"
    shown = "embedding_proxy_canary_verdict"
    assert {name: await canary.client.metric(shown, verdict=name) for name in ("other-model", "failed")} == {
        "other-model": 1,
        "failed": 1,
    }
    _, log = await asyncio.to_thread(canary.process.stop, signal.SIGTERM)
    said = [line.partition("m of ")[2] for line in log.splitlines() if "canary: m of" in line]
    details = ("status 500", "status 503", "status 429", "status 401", "upstream_unreachable", "upstream_timeout")
    for line, detail in zip(said[-len(details) :], details, strict=True):
        assert detail in line
