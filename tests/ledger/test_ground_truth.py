"""The ledger compared with what each client was told and what the upstream was asked, over a random load.

Two workers of one proxy with a Redis are restarted, and one of them is killed. Every figure must be exact.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector
from prometheus_client.samples import Sample

from proxy.access.pseudonyms import Pseudonyms
from tests.support import workers
from tests.support.client import HttpClient
from tests.support.ledger_load import CLIENTS, LedgerLoad, key_of
from tests.support.process import Process
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.redis_server import RedisServer
from tests.support.scripted import ScriptedUpstream

LIVES = 3 if IS_SLOW_PROFILE else 2  # of the proxy
LOADS = 2 * LIVES  # before and after a worker is killed
REQUESTS = (12_000 if IS_SLOW_PROFILE else 600) // LOADS
SECRET = "5" * 32
PRICE = 2.0


class Counts:
    """Samples of metrics, added up."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._samples = list(samples)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts([*self._samples, *other._samples])

    def by(self, name: str, *labels: str) -> Counter[tuple[str, ...]]:
        """The sums by some labels, but for those that are 0."""
        sums = Counter[tuple[str, ...]]()
        for sample in self._samples:
            if sample.name == f"embedding_proxy_{name}":
                sums[tuple(sample.labels[label] for label in labels)] += sample.value  # type: ignore[assignment]
        return +sums


def arguments_of(folder: Path, redis_url: str, mode: str) -> list[str]:
    (folder / "proxy.toml").write_text(f'[prices]\n"*" = {PRICE}\n')
    arguments = ["--config", str(folder / "proxy.toml"), "--store", redis_url, "--log-requests", "no"]
    if mode == "pseudonyms":
        return [*arguments, "--client-labels-key-env", "LABELS", "--share", "all"]
    keys = folder / "clients"
    lines = (f"{name} sha256:{sha256(key_of(name).encode()).hexdigest()} 2026-01-01\n" for name in CLIENTS)
    keys.write_text("".join(lines))
    return [*arguments, "--client-keys", str(keys), "--upstream-key-env", "UPSTREAM_KEY"]


@asynccontextmanager
async def clients_of(process: Process, *, keep_alive: bool) -> AsyncIterator[HttpClient]:
    connector = TCPConnector(limit=0, force_close=not keep_alive)
    async with ClientSession(connector=connector, auto_decompress=False) as session:
        yield HttpClient(session, process.base_url, process.admin_url)


async def loaded(process: Process, load: LedgerLoad) -> None:
    """Greet both workers as each client, of which the kernel chooses one a connection, and then load them."""
    async with clients_of(process, keep_alive=False) as client:
        for name in CLIENTS:
            greeted: set[str] = set()
            while len(greeted) < 2:
                greeted.add(await load.greet(client, name))
    async with clients_of(process, keep_alive=True) as client:
        await load.play([client], REQUESTS)


async def settled(process: Process, load: LedgerLoad, before: Counts) -> Counts:
    """The counters, once all calls have been billed; if they never are, those of a minute later."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + workers.TIMEOUT_S
    async with clients_of(process, keep_alive=True) as client:
        while True:
            counts = Counts(await client.samples())
            billed = before.by("tokens_total", "kind")["billed",] + counts.by("tokens_total", "kind")["billed",]
            is_idle = not counts.by("requests_in_flight").total()
            if (is_idle and billed == load.truth.upstream_billed) or loop.time() > until_s:
                return counts


async def kill_a_worker(process: Process) -> None:
    killed = workers.children(process)[0]
    os.kill(killed, signal.SIGKILL)

    async def is_replaced() -> bool:
        return len(workers.children(process)) == 3 and killed not in workers.children(process)

    await workers.until(is_replaced)


async def played(folder: Path, upstream: ScriptedUpstream, arguments: list[str]) -> tuple[LedgerLoad, Counts]:
    """All lives of the proxy, and what it counted in them."""
    load, counts = LedgerLoad(upstream), Counts()
    for _ in range(LIVES):
        with workers.proxy(folder, upstream, *arguments) as process:
            await loaded(process, load)
            await settled(process, load, counts)  # read, so that the counts of the killed worker are kept
            await kill_a_worker(process)
            await loaded(process, load)
            counts += await settled(process, load, counts)
            await asyncio.to_thread(process.stop, signal.SIGTERM)
    return load, counts


@pytest.mark.timeout(3600 if IS_SLOW_PROFILE else 300)
@pytest.mark.parametrize("mode", ["names", "pseudonyms"])
async def test_the_ledger_is_exact(
    upstream: ScriptedUpstream, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    asyncio.get_running_loop().set_debug(False)  # whose notes would take most of the time
    redis_server.command("FLUSHALL")
    monkeypatch.setenv("LABELS", SECRET)
    monkeypatch.setenv("UPSTREAM_KEY", "held")
    load, counts = await played(tmp_path, upstream, arguments_of(tmp_path, redis_server.url, mode))
    truth = load.truth
    pseudonyms = Pseudonyms(SECRET.encode())
    label = {
        name: name if mode == "names" else pseudonyms.of([("authorization", f"Bearer {key_of(name)}")])
        for name in CLIENTS
    }

    assert counts.by("client_requests_total", "client", "outcome") == {
        (label[client], outcome): count for (client, outcome), count in truth.requests.items()
    }
    assert counts.by("client_items_total", "client") == {
        (label[client],): count for client, count in truth.items.items()
    }
    assert counts.by("client_bypasses_total", "client", "reason") == {
        (label[client], reason): count for (client, reason), count in truth.bypasses.items()
    }
    tokens = counts.by("client_tokens_total", "client", "kind")
    for client in CLIENTS:
        assert tokens[label[client], "billed"] == truth.billed[client], client
        assert tokens[label[client], "saved"] == truth.saved[client], client
    # Charged once each: in all exactly what the upstream was paid, and what the proxy says it saved.
    for kind, total in (("billed", truth.upstream_billed), ("saved", sum(truth.saved.values()))):
        assert counts.by("client_tokens_total", "kind")[kind,] == total
        assert counts.by("tokens_total", "kind")[kind,] == total
        cost = counts.by("client_cost_total", "kind")[kind,]
        assert cost == pytest.approx(total * PRICE / 1e6) == counts.by("cost_total", "kind")[kind,]
    # All of it happened.
    assert truth.requests.total() >= REQUESTS * LOADS
    assert counts.by("items_total", "result")["joined",] > 20
    assert {outcome for _, outcome in truth.requests} == {"hit", "partial", "miss", "bypass", "error"}
    assert mode == "pseudonyms" or load.merged_clients > 10
