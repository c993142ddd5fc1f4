"""A canary in whole proxies: what it asks, what it leaves alone, and that no response has vectors of two epochs."""

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.app import running
from proxy.canary.canary import Canary
from proxy.canary.check_bodies import TEXTS
from proxy.canary.subject import epoch_digest
from proxy.config.settings import StoreSetting, UpstreamSetting
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.dict_store import Clock, written
from tests.support.drifting import DriftingModel
from tests.support.scripted import ScriptedUpstream, vector
from tests.support.servers import Servers
from tests.support.settings import settings_for

HOUR_S = 3600.0
ON: dict[str, Any] = {"canary_interval_s": 6 * HOUR_S, "on_drift": "new-epoch"}
KINDS = ["sqlite", "one", pytest.param("cluster", marks=pytest.mark.cluster)]


@pytest.fixture
def model(upstream: ScriptedUpstream) -> DriftingModel:
    model = DriftingModel(dimensions=upstream.dimensions)
    upstream.reply = model.reply
    return model


@pytest.fixture
def store(request: pytest.FixtureRequest, servers: Servers, sqlite_path: Path) -> StoreSetting:
    if request.param == "sqlite":
        return StoreSetting(path=sqlite_path)
    return StoreSetting(url=servers.emptied(request.param, None))


def canary_of(client: Client) -> Canary:
    canary = client.proxy.canary
    assert canary is not None
    return canary


def epoch_of(client: Client) -> int:
    url = client.proxy.origins.default.routes.embeddings("/v1/embeddings", model=None)
    return canary_of(client).epochs.current(epoch_digest(url, "m"))


def expected(weights: str, texts: list[str], dimensions: int) -> list[list[float]]:
    return [vector(weights, text, dimensions).astype(float).tolist() for text in texts]


async def verdict(client: Client) -> list[str]:
    return [
        value
        for value in ("first", "same-bits", "drifted", "failed")
        if await client.metric("embedding_proxy_canary_verdict", verdict=value)
    ]


async def test_without_it_nothing_is_asked_or_kept(
    start_proxy: StartProxy, upstream: ScriptedUpstream, sqlite_path: Path
) -> None:
    client = await start_proxy(store=StoreSetting(path=sqlite_path))
    await client.embed("a")
    assert client.proxy.canary is None
    assert upstream.items == {'"a"': 1}


async def test_it_asks_plainly_for_what_clients_ask_for_and_leaves_their_numbers_alone(
    start_proxy: StartProxy, upstream: ScriptedUpstream, model: DriftingModel
) -> None:
    own = UpstreamSetting(name="scripted", base_url=upstream.base_url, canary_key="sk-canary")
    client = await start_proxy(upstream=own, canary_interval_s=6 * HOUR_S)
    await canary_of(client).tick()
    assert upstream.calls == []  # nobody has asked for anything
    await client.embed(["a", "b"], dimensions=upstream.dimensions, headers={"X_Portkey_Config": "c"})
    await client.embed("nothing", model="never answered", headers={"Content_Type": "text/plain"})
    asked = len(upstream.calls)
    names = ("requests_total", "items_total", "tokens_total", "validations_total")
    before = [await client.metric(f"embedding_proxy_{name}") for name in names]
    await canary_of(client).tick()
    assert await verdict(client) == ["first"]
    calls = upstream.calls[asked:]
    assert len(calls) == len(TEXTS) + 1
    assert {call.headers["Authorization"] for call in calls} == {"Bearer sk-canary"}
    assert {call.headers["User-Agent"].rpartition(" ")[2] for call in calls} == {"canary"}
    assert all(set(call.json) == {"model", "input"} for call in calls)
    assert not any("x-portkey-config" in call.headers for call in calls)
    assert [await client.metric(f"embedding_proxy_{name}") for name in names] == before
    assert await client.metric("embedding_proxy_canary_tokens_total", model="m") == 7 * 2 * len(TEXTS)
    # Neither is what it got in the cache, nor is its key accepted for a client.
    assert (await client.embed(TEXTS[0])).cache == "MISS"
    assert (await client.embed(["a", "b"], dimensions=upstream.dimensions)).cache == "MISS"  # other headers
    assert (await client.post({"model": "m", "input": TEXTS[0]}, key="Bearer sk-canary")).cache == "MISS"


async def test_a_hit_costs_no_call_and_a_canary_that_fails_costs_no_client_anything(
    start_proxy: StartProxy, upstream: ScriptedUpstream, model: DriftingModel
) -> None:
    clock = Clock()
    client = await start_proxy(clock=clock, canary_interval_s=6 * HOUR_S)
    await client.embed("a")
    model.status = 401
    await canary_of(client).tick()
    assert await verdict(client) == ["failed"]
    response = await client.embed("a")
    assert (response.status, response.cache) == (200, "HIT")


@pytest.mark.parametrize("store", KINDS, indirect=True)
async def test_after_a_restart_and_in_another_process_it_compares_with_the_first_vectors(
    start_proxy: StartProxy, model: DriftingModel, store: StoreSetting
) -> None:
    clock = Clock()
    one = await start_proxy(clock=clock, store=store, canary_interval_s=6 * HOUR_S)
    await one.embed("a")
    await canary_of(one).tick()
    model.weights = "w2"
    clock.now += 6 * HOUR_S
    other = await start_proxy(clock=clock, store=store, canary_interval_s=6 * HOUR_S)
    await other.embed("b")
    if store.url is not None:  # a lease ends by the server's clock
        subject = canary_of(other).in_use.current()[0]
        await other.proxy.cache.store.extend_many([subject.turn_key], ttl_s=0)
    await _until_checked(other)
    assert await verdict(other) == ["drifted"]
    assert epoch_of(other) == 0  # it only reports


async def _until_checked(client: Client) -> None:
    async with asyncio.timeout(10):
        while not await client.metric("embedding_proxy_canary_checks_total"):
            await canary_of(client).tick()


@pytest.mark.parametrize("store", KINDS, indirect=True)
async def test_a_new_epoch_ends_every_way_to_an_old_vector_in_both_processes(
    start_proxy: StartProxy, model: DriftingModel, store: StoreSetting
) -> None:
    clock = Clock()
    one, other = [await start_proxy(clock=clock, store=store, **ON) for _ in range(2)]
    texts = ["a", "b"]
    for client in (one, other):
        await client.embed(texts)
    await canary_of(one).tick()
    for client in (one, other):
        for _ in range(5):  # parsed, known by its fingerprint, by its bytes, and by its connection's head
            assert (await client.embed(texts)).cache == "HIT"
    model.weights = "w2"
    clock.now += 6 * HOUR_S
    subject = canary_of(one).in_use.current()[0]
    await one.proxy.cache.store.extend_many([subject.turn_key], ttl_s=0)
    async with asyncio.timeout(10):
        while not epoch_of(one):
            await canary_of(one).tick()
    await canary_of(other).epochs.poll()
    response = await one.embed(texts)
    assert (response.cache, response.vectors) == ("MISS", expected("w2", texts, model.dimensions))
    await written(one.proxy.cache)
    for client in (one, other):
        for _ in range(5):
            response = await client.embed(texts)
            assert (response.cache, response.vectors) == ("HIT", expected("w2", texts, model.dimensions))
        assert await client.metric("embedding_proxy_requests_total", outcome="hit") >= 10


async def test_a_request_under_way_is_answered_in_the_epoch_in_which_it_came(
    start_proxy: StartProxy, upstream: ScriptedUpstream, model: DriftingModel, sqlite_path: Path
) -> None:
    """What is half in the cache and half under way, when an epoch begins, is not completed from the new one."""
    client = await start_proxy(store=StoreSetting(path=sqlite_path), **ON)
    await client.embed("a")
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def held(call: Any) -> Any:
        arrived.set()
        reply = model.reply(call)
        await go_on.wait()
        return reply

    upstream.reply = held
    under_way = asyncio.create_task(client.embed(["a", "b"]))
    await arrived.wait()
    (subject,) = canary_of(client).in_use.current()
    await canary_of(client).epochs.advance(subject.digest, 0)
    model.weights = "w2"
    upstream.reply = model.reply
    assert (await client.embed(["a", "b"])).vectors == expected("w2", ["a", "b"], model.dimensions)
    go_on.set()
    response = await under_way
    assert (response.cache, response.vectors) == ("PARTIAL", expected("w1", ["a", "b"], model.dimensions))
    response = await client.embed(["a", "b"])
    assert (response.cache, response.vectors) == ("HIT", expected("w2", ["a", "b"], model.dimensions))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 1), st.sets(st.integers(0, 5), min_size=1)),
        st.tuples(st.just("check"), st.integers(0, 1), st.none()),
        st.tuples(st.just("poll"), st.integers(0, 1), st.none()),
        st.tuples(st.just("weights"), st.integers(1, 3), st.none()),
    ),
    min_size=10,
    max_size=40,
)


@settings(max_examples=15)
@given(STEPS)
def test_no_response_of_two_processes_has_vectors_from_before_its_epoch(steps: list[tuple[str, int, Any]]) -> None:
    asyncio.run(_Random(steps).play())


class _Random:
    """Two proxies on one file. ``began`` has for each epoch how often the weights had changed when it began."""

    def __init__(self, steps: list[tuple[str, int, Any]]) -> None:
        last = [("weights", 9, None), ("check", 0, None), ("poll", 1, None), ("ask", 0, {0}), ("ask", 1, {0})]
        self.steps = [("check", 0, None), *steps, *last]
        self.clock = Clock()
        self.history = ["w1"]
        self.began = {0: 0}

    async def play(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with AsyncExitStack() as stack:
                upstream = await stack.enter_async_context(ScriptedUpstream().serving())
                self.model = DriftingModel(dimensions=upstream.dimensions)
                upstream.reply = self.model.reply
                chosen = settings_for(upstream, store=StoreSetting(path=Path(folder) / "cache.sqlite3"), **ON)
                session = await stack.enter_async_context(ClientSession(auto_decompress=False))
                self.clients = []
                for _ in range(2):
                    proxy = await stack.enter_async_context(running(chosen, clock=self.clock))
                    self.clients.append(Client(session, proxy))
                    await self.clients[-1].embed("warm-up")
                for name, number, texts in self.steps:
                    await getattr(self, name)(number, texts)
                assert epoch_of(self.clients[0]) == epoch_of(self.clients[1]) >= 1

    async def ask(self, number: int, texts: set[int]) -> None:
        client, asked = self.clients[number], [f"text {text}" for text in sorted(texts)]
        epoch = epoch_of(client)
        response = await client.embed(asked)
        assert response.status == 200
        fresh = self.history[self.began[epoch] :]
        for text, got in zip(asked, response.vectors, strict=True):
            assert got in [expected(weights, [text], self.model.dimensions)[0] for weights in fresh]
        await written(client.proxy.cache)

    async def check(self, number: int, _: None) -> None:
        client = self.clients[number]
        self.clock.now += 6 * HOUR_S
        await canary_of(client).tick()
        for each in self.clients:
            self.began.setdefault(epoch_of(each), len(self.history) - 1)

    async def poll(self, number: int, _: None) -> None:
        await canary_of(self.clients[number]).epochs.poll()

    async def weights(self, number: int, _: None) -> None:
        self.model.weights = f"w{number}"
        if self.history[-1] != self.model.weights:
            self.history.append(self.model.weights)


async def test_a_proxy_that_can_not_read_the_epochs_shares_no_entry(
    start_proxy: StartProxy, model: DriftingModel, sqlite_path: Path
) -> None:
    """It might be one of weights that are gone."""
    dead = StoreSetting(url="redis://127.0.0.1:1/0")
    client = await start_proxy(store=dead, **ON)
    assert not canary_of(client).epochs.is_known
    assert (await client.embed("a")).cache == "MISS"
    assert (await client.embed("a")).cache == "HIT"
