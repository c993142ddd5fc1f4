"""No data of a tenant reaches the other, logs, metrics or traces, and neither changes the results of the other.

`tests.support.tenants` makes their requests, and upstreams that repeat in every response all that they received.
"""

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pybase64
import pytest
from aiohttp import ClientSession, TCPConnector, WSServerHandshakeError
from yarl import URL

from proxy.app import Running, running
from proxy.config.settings import SameModel, Settings, StoreSetting, UpstreamSetting
from tests.support.load_runner import Fault, LoadRunner, send
from tests.support.oracle import Oracle, Received, Request, fails_for_all, leak_in
from tests.support.otlp_receiver import Receiver
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.redis_server import RedisServer
from tests.support.reference import HELD_KEY, Reference
from tests.support.scenarios import SCOPES, Scenario, Wave
from tests.support.scripted import ScriptedUpstream
from tests.support.settings import settings_for
from tests.support.tenants import (
    TENANTS,
    LoudServer,
    client_keys,
    is_judged,
    judged,
    listening,
    one_beside_many,
    two_tenants,
    without,
)

REQUESTS = 26_000 if IS_SLOW_PROFILE else 100  # in each of four cases
PAIRS = 1_000 if IS_SLOW_PROFILE else 10  # of Ann's responses with and without Bob
WAVES = 12 if IS_SLOW_PROFILE else 6  # of a scenario
TRIES = 200  # to make a scenario smaller in which something goes wrong
# What must have happened for the test to mean anything.
SEEN = {
    "MISS", "HIT", "PARTIAL", "BYPASS", "joined", "fallback", "left",
    "GET", "POST", "OPTIONS", "WEBSOCKET", "RAW", "101", "307",
}  # fmt: skip
CASES = [*((scope, 1) for scope in SCOPES), ("owned", 2)]  # scopes and replicas, which share a Redis
ADMIN_PAGES = ("/metrics", "/status.json", "/requests.json", "/", "/openapi.json")
# The proxy has a canary of its own, which it names in metrics.
_is_of_tenant = re.compile(f"canary-({'|'.join(TENANTS)})").search


@dataclass(kw_only=True)
class Tenants(LoadRunner):
    """Proxies in front of two upstreams, of which the second stands in for the first in half of the scenarios."""

    second: ScriptedUpstream
    stand_in: LoudServer
    keys_file: Path
    receiver: Receiver
    said: list[str] = field(default_factory=list)  # in the log

    def settings(self, store: StoreSetting, changes: Mapping[str, Any]) -> Settings:
        key = HELD_KEY if self.scope == "owned" else None
        rest = {name: value for name, value in changes.items() if name != "falls_back"}
        others = (SameModel(upstream="second"),) if changes.get("falls_back") else ()
        its = UpstreamSetting(name="first", base_url=self.upstream.base_url, key=key, same_model=others)
        second = UpstreamSetting(name="second", base_url=self.second.base_url, key=key, models=("second/*",))
        return settings_for(
            self.upstream,
            upstream=its,
            routed=(second,) if others else (),
            store=store,
            shares_all=self.scope == "all",
            client_keys=self.keys_file if key else None,
            traces="otlp",
            rate_limit_wait_s=0.0,  # what the reference relays
            **rest,
        )

    async def send(self, origin: str, request: Request) -> Received | None:
        self.seen[request.method] += 1
        sending = {"WEBSOCKET": talk, "RAW": write}.get(request.method, send)
        return await sending(self.session, origin, request)

    async def faults(self, scenario: Scenario) -> list[Fault]:
        self.said.clear()
        self.receiver.bodies.clear()
        faults: list[Fault] = []
        async for _, wave, got in self.waves(scenario):
            faults = faults or list(self._faults(wave, got))
        return faults or list(self._seen_by_others())

    async def waves(self, scenario: Scenario) -> AsyncIterator[tuple[int, Wave, Sequence[Received | None]]]:
        """Run a scenario."""
        async with AsyncExitStack() as stack:
            settings = self.settings(self.fresh_store(), scenario.settings)
            proxies = [
                await stack.enter_async_context(running(settings, write_log=self.said.append))
                for _ in range(self.replicas)
            ]
            for number, wave in enumerate(scenario.waves):
                yield number, wave, await self._run(wave, proxies)
            for proxy in proxies:
                await self._read_pages(proxy)

    async def _read_pages(self, proxy: Running) -> None:
        for path in ADMIN_PAGES:
            async with self.session.get(proxy.admin_url + path) as response:
                self.said.append(f"{response.headers} {await response.text()}")

    def _seen_by_others(self) -> Iterator[Fault]:
        for body in self.receiver.bodies:
            if _is_of_tenant(body.decode(errors="replace")):
                yield Fault(category="traces", told=f"{body!r}")
        for text in self.said:
            if _is_of_tenant(text):
                yield Fault(category="logs or metrics", told=text)
        for server in (self.server, self.stand_in):
            assert isinstance(server, LoudServer)
            for told in server.told_secrets:
                yield Fault(category="a secret went up", told=told)
            server.told_secrets.clear()

    def _faults(self, wave: Wave, answers: Sequence[Received | None]) -> Iterator[Fault]:
        self.seen["fallback"] += len(self.stand_in.calls)
        self.seen["merged"] += sum(is_merged(call.body) for call, _ in self.server.calls + self.stand_in.calls)
        self.stand_in.calls.clear()
        oracle = Oracle(reference=self.server.reference, owns_key=self.scope == "owned")
        for request, got in zip(wave.requests, answers, strict=True):
            if got is None:
                self.seen["left"] += 1
                continue
            self.seen[got.header("X-Cache") or "no cache"] += 1
            self.seen["joined"] += "collapsed" in (got.header("Cache-Status") or "")
            self.seen[str(got.status)] += 1
            wrong = leak_in(request, got)
            if self.scope == "owned" and request.method != "OPTIONS" and got.header("Set-Cookie"):
                wrong = "a session of the proxy's key"
            if is_judged(request) and not wrong:
                right = oracle.expected(judged(request), has_limits=False)
                wrong = "a vector of something else" if embeddings_in(got.body) - embeddings_in(right.body) else None
            if wrong:
                yield Fault(category=wrong, told=f"{request!r}\n  got: {got!r}\n{self._calls()}")


def embeddings_in(body: bytes) -> set[tuple[float, ...]]:
    """The vectors in a response; none where it is an error."""
    try:
        data = orjson.loads(body)["data"]
    except (ValueError, KeyError, TypeError):
        return set()
    return {as_numbers(datum["embedding"]) for datum in data}


def as_numbers(embedding: str | list[float] | None) -> tuple[float, ...]:
    if isinstance(embedding, str):
        return tuple(memoryview(pybase64.b64decode(embedding)).cast("f"))
    return tuple(embedding or ())


def is_merged(body: bytes) -> bool:
    """Whether a call is for texts of both."""
    return all(f"canary-{tenant}".encode() in body for tenant in TENANTS)


async def talk(session: ClientSession, origin: str, request: Request) -> Received:
    url = URL(origin + request.target, encoded=True)
    try:
        protocols = (f"openai-insecure-api-key.canary-{request.client}-key", "realtime")
        async with session.ws_connect(url, headers=request.headers, protocols=protocols) as socket:
            await socket.send_str(request.body.decode())
            return Received(101, tuple(socket._response.headers.items()), (await socket.receive_str()).encode())
    except WSServerHandshakeError as refused:
        return Received(refused.status, tuple((refused.headers or {}).items()), reason=refused.message)


async def write(_: ClientSession, origin: str, request: Request) -> Received:
    reader, writer = await asyncio.open_connection(*origin.removeprefix("http://").split(":"))
    writer.write(request.body)
    writer.write_eof()
    got = Received(body=await reader.read())
    writer.close()
    await writer.wait_closed()
    return got


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
async def tenants(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Tenants]:
    scope, replicas = request.param
    keys_file = tmp_path / "clients"
    keys_file.write_text(client_keys())
    # To note where each step came from, as debugging does, takes eight times as long.
    asyncio.get_running_loop().set_debug(False)
    reference = Reference(tells_tenants_apart=scope == "credential")
    # The key is of nobody's concern where the proxy holds one; one in the query is never meant for who stands in.
    secrets = re.compile("canary-[a-z]+-key" if scope == "owned" else "key=canary")
    server = LoudServer(reference=reference, secrets=secrets if scope == "owned" else None)
    stand_in = LoudServer(reference=reference, secrets=secrets)
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(Receiver().serving())
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        upstream = await stack.enter_async_context(ScriptedUpstream().serving())
        second = await stack.enter_async_context(ScriptedUpstream().serving())
        upstream.reply, second.reply = server, stand_in
        session = await stack.enter_async_context(ClientSession(connector=TCPConnector(limit=0)))
        yield Tenants(
            session=session,
            upstream=upstream,
            server=server,
            scope=scope,
            fresh_store=StoreSetting if replicas == 1 else shared_store(request.getfixturevalue("redis_server")),
            replicas=replicas,
            second=second,
            stand_in=stand_in,
            keys_file=keys_file,
            receiver=receiver,
            said=stack.enter_context(listening()),
        )


def shared_store(server: RedisServer) -> Callable[[], StoreSetting]:
    def emptied() -> StoreSetting:
        server.command("FLUSHALL")
        return StoreSetting(url=server.url)

    return emptied


def with_settings(scenario: Scenario, rng: random.Random) -> Scenario:
    more = {"falls_back": rng.random() < 0.5, "revalidate_s": rng.choice((600.0, 600.0, 0.0))}
    return replace(scenario, settings={**scenario.settings, **more})


async def test_no_tenant_data_reaches_the_other_or_the_logs(tenants: Tenants, request: pytest.FixtureRequest) -> None:
    requests, number = 0, 0
    while requests < REQUESTS:
        rng = random.Random(seed := f"{request.node.name} {number}")
        scenario = with_settings(two_tenants(rng, tenants.scope, waves=WAVES), rng)
        requests, number = requests + scenario.size, number + 1
        for fault in await tenants.faults(scenario):
            smaller, told = await tenants.smallest(scenario, fault.category, tries=TRIES)
            pytest.fail(f"{fault.category} (seed {seed})\n{smaller}\n{told or fault.told}", pytrace=False)
    assert tenants.receiver.bodies
    if IS_SLOW_PROFILE:
        merged = {"merged"} if tenants.scope == "owned" else set()
        assert {name for name, count in tenants.seen.items() if count} >= SEEN | merged


# --- with and without the other

OWN = {"Date", "X-Request-Id"}


def difference(scope: str, asked: Request, beside: Received, alone: Received) -> str | None:
    """How a response beside the other tenant's requests is unlike that without them, if not for the better.

    In a scope of her own Ann's is the same in all that it says. In a shared one Bob may have paid before for what she
    asks, a failure may be told in the proxy's own words, and what came from who stands in before the upstream has told
    its own name for the model has the name that was asked for.
    """
    if scope == "credential":
        parts = {"status": (beside.status, alone.status), "body": (told(beside), told(alone))}
        parts |= {"head": (head(beside), head(alone))}
        return next((name for name, (one, other) in parts.items() if one != other), None)
    if has_vectors(alone):
        if not has_vectors(beside) or vectors(beside) != vectors(alone):
            return "not the same vectors"
        models = [orjson.loads(body)["model"] for body in (alone.body, asked.body)]
        return None if orjson.loads(beside.body)["model"] in models else "another model"
    return None if has_vectors(beside) or beside.status == alone.status else "another failure"


def head(got: Received) -> Counter[tuple[str, str]]:
    own_words = {"Content-Length"} if got.status == 502 else set()
    return Counter(pair for pair in got.headers if pair[0].title() not in OWN | own_words)


def told(got: Received) -> object:
    """How a connection broke depends on whose it was before."""
    return orjson.loads(got.body)["error"]["code"] if got.status == 502 else got.body


def has_vectors(got: Received) -> bool:
    return 200 <= got.status < 300 and b'"data"' in got.body


def vectors(got: Received) -> object:
    return [as_numbers(datum["embedding"]) for datum in orjson.loads(got.body)["data"]]


async def anns(tenants: Tenants, scenario: Scenario) -> dict[int, tuple[Request, Received]]:
    """Ann's requests and the responses, by the number of the wave."""
    found = {}
    async for number, wave, answers in tenants.waves(scenario):
        for request, got in zip(wave.requests, answers, strict=True):
            if request.client == "ann" and got is not None:
                found[number] = request, got
    return found


def are_failing(tenants: Tenants, wave: Wave) -> bool:
    """Whether so many of Bob's requests fail that the proxy may have stopped asking each alone
    (`tests.support.oracle`)."""
    oracle = Oracle(reference=tenants.server.reference, owns_key=tenants.scope == "owned", regime=wave.regime)
    bobs = [judged(request) for request in wave.requests if request.client == "bob" and is_judged(request)]
    return sum(fails_for_all(oracle.expected(request)) for request in bobs) > 1


async def test_tenants_do_not_affect_each_other(tenants: Tenants, request: pytest.FixtureRequest) -> None:
    compared, number = 0, 0
    while compared < PAIRS:
        rng = random.Random(seed := f"{request.node.name} {number}")
        number += 1
        scenario = with_settings(one_beside_many(rng, tenants.scope, waves=WAVES), rng)
        beside, alone = await anns(tenants, scenario), await anns(tenants, without(scenario, "bob"))
        assert beside.keys() == alone.keys()
        for at, (asked, got) in beside.items():
            compared += 1
            unlike = difference(tenants.scope, asked, got, alone[at][1])
            if unlike and not are_failing(tenants, scenario.waves[at]):
                pytest.fail(
                    f"{unlike} (seed {seed}, wave {at})\n{asked!r}\n  beside: {got!r}\n  alone:  {alone[at][1]!r}\n"
                    + str(replace(scenario, waves=scenario.waves[: at + 1])),
                    pytrace=False,
                )
