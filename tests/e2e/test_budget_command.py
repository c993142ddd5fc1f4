"""Budgets and client labels of proxies as a user starts them: two replicas of two workers each on one Redis."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession, TCPConnector, web

from proxy.ledger.ledger import MAX_PSEUDONYMS, OTHER
from tests.support import workers
from tests.support.client import HttpClient
from tests.support.process import Process
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted import Call, ScriptedUpstream

AT_ONCE, TOKENS = 16, 10  # requests, and the tokens of each
LIMIT = (6_000 if IS_SLOW_PROFILE else 600) * TOKENS
RESTARTS = 6 if IS_SLOW_PROFILE else 2
CREDENTIALS = 100_000 if IS_SLOW_PROFILE else 600
KEY = "ep-team"
# The command, but a store that takes long because the machine is busy has not failed: such counts may count twice.
PROGRAM = """
from proxy.app import core
core._MIN_COUNT_S = 60.0
from proxy.cli.commands import main
main()
"""


class Replicas:
    """Two replicas that may be restarted, and what the upstream has billed for them."""

    def __init__(self, folder: Path, upstream: ScriptedUpstream, arguments: Iterable[str]) -> None:
        self._folder = folder
        self._upstream = upstream
        self._arguments = ("--upstream", upstream.base_url, "--workers", "2", "--log-requests", "no", *arguments)
        self._processes: list[Process] = []
        self.billed = 0
        upstream.reply = self._reply

    async def _reply(self, call: Call) -> web.StreamResponse:
        await asyncio.sleep(0)
        self.billed += sum(map(len, call.items))
        return self._upstream.embed(call)

    def _start(self) -> Process:
        return Process(self._folder, free_port(), *self._arguments, program=(sys.executable, "-c", PROGRAM))

    @asynccontextmanager
    async def running(self, *, count: int = 2) -> AsyncIterator["Replicas"]:
        try:
            for _ in range(count):
                self._processes.append(await asyncio.to_thread(self._start))
            yield self
        finally:
            for process in self._processes:
                if process.popen.poll() is None:
                    await asyncio.to_thread(process.stop, signal.SIGTERM)

    async def restart(self, number: int) -> None:
        """A replica is replaced by a new one, as in a deployment."""
        old, self._processes[number] = self._processes[number], await asyncio.to_thread(self._start)
        await asyncio.to_thread(old.stop, signal.SIGTERM)

    async def kill_a_worker(self, number: int) -> None:
        os.kill(workers.children(self._processes[number])[0], signal.SIGKILL)

    def clients(self, session: ClientSession) -> list[HttpClient]:
        return [HttpClient(session, process.base_url, process.admin_url) for process in self._processes]

    async def spend(self, session: ClientSession, numbers: Iterable[int]) -> None:
        """Ask for new texts until the budget is used up."""
        for number in numbers:
            client = random.choice(self.clients(session))
            try:
                response = await ask(client, number)
            except ClientError:  # of a process that ends
                continue
            if response == 429:
                break
            assert response == 200

    async def until_billed(self, tokens: float, spenders: Iterable[asyncio.Task[None]]) -> None:
        """While all of them go on."""
        while self.billed < tokens:
            for task in spenders:
                assert not task.done(), task.result()
            await asyncio.sleep(0.01)  # other processes have no event to wait for


async def ask(client: HttpClient, number: int) -> int:
    return (await client.post({"model": "m", "input": f"{number:0{TOKENS}}"}, key=f"Bearer {KEY}")).status


@asynccontextmanager
async def new_session() -> AsyncIterator[ClientSession]:
    async with ClientSession(connector=TCPConnector(limit=0), auto_decompress=False) as session:
        yield session


@pytest.fixture
def arguments(redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    redis_server.command("FLUSHALL")
    monkeypatch.setenv("UPSTREAM_KEY", "held")
    keys, config = tmp_path / "clients", tmp_path / "proxy.toml"
    keys.write_text(f"team sha256:{sha256(KEY.encode()).hexdigest()} 2026-01-01\n")
    config.write_text(f'[budgets.all]\ntokens = {LIMIT}\nwindow = "36500d"\n')
    return [
        *("--config", str(config), "--store", redis_server.url, "--client-keys", str(keys)),
        *("--upstream-key-env", "UPSTREAM_KEY"),
    ]


@pytest.mark.long
@pytest.mark.timeout(3600 if IS_SLOW_PROFILE else 300)
@pytest.mark.parametrize("is_killed", [False, True], ids=["restarted", "killed"])
async def test_replicas_and_workers_overspend_by_no_more_than_what_is_in_flight(
    upstream: ScriptedUpstream, tmp_path: Path, arguments: list[str], is_killed: bool
) -> None:
    asyncio.get_running_loop().set_debug(False)  # whose notes would take most of the time
    in_flight = AT_ONCE * TOKENS
    lost = in_flight * RESTARTS if is_killed else 0  # what a killed process had not reported yet
    async with Replicas(tmp_path, upstream, arguments).running() as replicas, new_session() as session:
        numbers = iter(range(10**9))
        tasks = [asyncio.create_task(replicas.spend(session, numbers)) for _ in range(AT_ONCE)]
        for number in range(1, RESTARTS + 1):
            await replicas.until_billed(LIMIT * number / (RESTARTS + 1), tasks)
            await (replicas.kill_a_worker if is_killed else replicas.restart)(number % 2)
        await asyncio.gather(*tasks)
        assert LIMIT <= replicas.billed < LIMIT + in_flight + lost
    async with Replicas(tmp_path, upstream, arguments).running(count=1) as replicas, new_session() as session:
        (client,) = replicas.clients(session)
        assert [await ask(client, number) for number in (0, 10**9)] == [200, 429]
        assert await client.metric("embedding_proxy_requests_total", outcome="hit") == 1


@pytest.mark.timeout(3600 if IS_SLOW_PROFILE else 300)
async def test_any_number_of_credentials_has_a_bounded_number_of_labels(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them are made up. All have a budget, a header that never repeats, and a field that nobody knows."""
    asyncio.get_running_loop().set_debug(False)
    monkeypatch.setenv("LABELS", "5" * 32)
    config = tmp_path / "proxy.toml"
    config.write_text(f"[budgets.all]\ntokens = {TOKENS}\n")
    refusal = {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}

    async def reply(call: Call) -> web.StreamResponse:
        if call.headers["Authorization"].startswith("Bearer made-up"):
            return web.json_response(refusal, status=401)
        return upstream.embed(call)

    upstream.reply = reply
    arguments = ("--config", str(config), "--client-labels-key-env", "LABELS", "--log-requests", "no")
    with workers.proxy(tmp_path, upstream, *arguments) as process:
        async with new_session() as session:
            client = HttpClient(session, process.base_url, process.admin_url)
            numbers = iter(range(CREDENTIALS))

            async def work() -> None:
                for number in numbers:
                    key = f"Bearer {('made-up', 'sk')[number % 2]}-{number}"
                    body = {"model": "m", "input": f"{number:0{TOKENS}}", f"field_{number}": number}
                    await client.post(body, key=key, User_Agent=f"program-{number}", X_Trace=str(number))

            await asyncio.gather(*(work() for _ in range(4 * AT_ONCE)))
            samples = [sample for sample in await client.samples() if "client" in sample.labels]
    labels = {sample.labels["client"] for sample in samples}
    assert MAX_PSEUDONYMS + 1 <= len(labels) <= 2 * MAX_PSEUDONYMS + 1  # each process has its own fifty
    assert OTHER in labels
    assert len(samples) < 40 * len(labels)
    asked = sum(each.value for each in samples if each.name == "embedding_proxy_client_requests_total")
    assert asked == CREDENTIALS
