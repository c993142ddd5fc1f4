"""Under load, every client gets the response that a direct call to the upstream would get.

`tests.support.reference` is the upstream, `tests.support.scenarios` makes the requests, and `tests.support.oracle`
decides which responses are right.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
import pytest

from proxy.config.settings import StoreSetting, UpstreamSetting
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.in_flight import waiting
from tests.support.load_runner import ReferenceServer, load_runner, send
from tests.support.oracle import Oracle, Received, Request, upstream_target
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.redis_server import RedisServer
from tests.support.reference import HELD_KEY, Reference, Regime
from tests.support.scenarios import CLIENTS, SCOPES, random_scenario
from tests.support.scripted import ScriptedUpstream

REQUESTS = 12_000 if IS_SLOW_PROFILE else 150  # of each of nine variants
WAVES = 12 if IS_SLOW_PROFILE else 6  # of a scenario
TRIES = 200  # to make a scenario smaller in which something goes wrong
# What must have happened for the test to mean anything.
SEEN = {"HIT", "PARTIAL", "MISS", "BYPASS", "merged", "left"} if IS_SLOW_PROFILE else {"MISS"}


@pytest.fixture(params=["memory", "sqlite", "redis"])
def fresh_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], StoreSetting]:
    if request.param == "memory":
        return StoreSetting
    if request.param == "sqlite":
        paths = (tmp_path / f"{n}.sqlite3" for n in range(1_000_000))
        return lambda: StoreSetting(path=next(paths))
    server: RedisServer = request.getfixturevalue("redis_server")

    def emptied() -> StoreSetting:
        server.command("FLUSHALL")
        return StoreSetting(url=server.url)

    return emptied


@pytest.mark.parametrize("scope", SCOPES)
async def test_every_client_gets_the_response_of_a_direct_call(
    scope: str,
    fresh_store: Callable[[], StoreSetting],
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "proxy")  # which says much about what clients do here
    # To note where each step came from, as debugging does, takes eight times as long.
    asyncio.get_running_loop().set_debug(False)
    replicas = 1 if fresh_store is StoreSetting else 2
    async with load_runner(scope, fresh_store=fresh_store, replicas=replicas) as runner:
        requests, number = 0, 0
        while requests < REQUESTS:
            seed = f"{request.node.name} {number}"
            scenario = random_scenario(random.Random(seed), waves=WAVES)
            requests, number = requests + scenario.size, number + 1
            for fault in await runner.faults(scenario):
                smaller, told = await runner.smallest(scenario, fault.category, tries=TRIES)
                pytest.fail(f"{fault.category} (seed {seed})\n{smaller}\n{told or fault.told}", pytrace=False)
        assert set(runner.seen) >= SEEN


async def test_reference_upstream_passes_its_own_check() -> None:
    """A test of the test: who asks without a proxy gets what was computed to be right."""
    asyncio.get_running_loop().set_debug(False)
    judged = 0
    async with load_runner("credential") as runner:
        oracle = Oracle(reference=runner.server.reference, owns_key=False)
        origin = runner.upstream.base_url.removesuffix("/v1")
        for wave in random_scenario(random.Random("direct"), waves=12).waves:
            runner.server.begin(Regime.NORMAL)
            for request in wave.requests:
                if (expected := oracle.expected(request)).cut is None:
                    direct = request._replace(target=upstream_target(request.target), leaves_after=None)
                    got = await send(runner.session, origin, direct)
                    assert got is not None
                    assert oracle.fault(request, got, expected) is None
                    judged += 1
    assert judged > 100


# --- what failures cost


AT_ONCE = 200
FAILING = (
    [Regime.ERROR, Regime.OVERLOADED, Regime.LIMITED, Regime.CUT] if IS_SLOW_PROFILE else [Regime.ERROR, Regime.CUT]
)
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer team"}


def request_for(n: int, given: object) -> Request:
    return Request(
        CLIENTS[n % len(CLIENTS)], "/v1/embeddings", HEADERS, orjson.dumps({"model": "plain", "input": given})
    )


def in_some_form(n: int, text: str) -> str | list[str]:
    """By itself, twice, beside one that may be cached, beside another."""
    return (text, [text, text], ["common", text], [text, text + "!"])[n // len(CLIENTS) % 4]


def faults_of(oracle: Oracle, requests: Sequence[Request], answers: Sequence[Received | None]) -> Counter[str]:
    judged = (
        oracle.fault(request, got or Received(), oracle.expected(request))
        for request, got in zip(requests, answers, strict=True)
    )
    return Counter(fault for fault in judged if fault is not None)


@pytest.fixture
async def server(upstream: ScriptedUpstream) -> ReferenceServer:
    asyncio.get_running_loop().set_debug(False)
    server = ReferenceServer(reference=Reference(tells_tenants_apart=False))
    upstream.reply = server
    return server


async def all_at_once(client: Client, server: ReferenceServer, requests: Sequence[Request]) -> list[Received | None]:
    """The upstream answers nothing until the proxy has all of them."""
    server.gate.clear()
    sent = [asyncio.create_task(send(client.session, client.origin, request)) for request in requests]
    await waiting(client, len(sent))
    server.gate.set()
    return await asyncio.gather(*sent)


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "new"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("regime", FAILING, ids=lambda regime: regime.value)
async def test_outage_adds_few_calls_compared_with_no_proxy(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    server: ReferenceServer,
    scope: str,
    regime: Regime,
    is_known: bool,
) -> None:
    its = UpstreamSetting(name="r", base_url=upstream.base_url, key=HELD_KEY if scope == "owned" else None)
    client = await start_proxy(upstream=its, shares_all=scope == "all")
    if is_known:
        await send(client.session, client.origin, request_for(0, "common"))
    server.begin(regime)
    requests = [request_for(n, in_some_form(n, f"canary-{CLIENTS[n % len(CLIENTS)]} {n}")) for n in range(AT_ONCE)]
    got = await all_at_once(client, server, requests)
    assert len(server.calls) <= 1.1 * AT_ONCE
    oracle = Oracle(reference=server.reference, owns_key=scope == "owned", regime=regime)
    assert faults_of(oracle, requests, got) == {}


@pytest.mark.parametrize(
    "mark", ["BAD-400", "BAD-403", "BAD-409", "BAD-500", "CRASH-HEAD", "CRASH-BODY", "ERROR-IN-200", "FLAG-246", "NULL"]
)
async def test_merged_failure_retries_each_request_at_most_once(
    client: Client, server: ReferenceServer, mark: str
) -> None:
    texts = [f"canary-{CLIENTS[n % len(CLIENTS)]} {n}" for n in range(AT_ONCE // 4)]
    bad = texts[20] = f"{texts[20]} {mark}"
    requests = [request_for(n, text) for n, text in enumerate(texts)]
    got = await all_at_once(client, server, requests)
    assert faults_of(Oracle(reference=server.reference, owns_key=False), requests, got) == {}
    alone = Counter(call.items[0] for call, _ in server.calls if len(call.items) == 1)
    assert any(len(call.items) > 1 for call, _ in server.calls)
    del alone[bad]  # a call that dies on a kept connection is repeated on another
    assert set(alone.values()) <= {1}  # none at all, where the merged response has what the others asked for
