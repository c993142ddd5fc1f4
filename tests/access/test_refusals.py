"""A refusal in any form lasts until the upstream accepts the key again."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from aiohttp import web

from proxy.config.settings import SameModel, UpstreamSetting
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.guarded import Clock
from tests.support.scripted import Call, Reply, ScriptedUpstream, error_reply

REVALIDATE_S = 600.0
OUTAGE = error_reply(503, {})


def to_model(upstream: ScriptedUpstream, model: str, status: int) -> Reply:
    """An upstream that answers ``status`` to one model, and takes all others."""
    return lambda call: web.json_response({}, status=status) if call.json["model"] == model else upstream.embed(call)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def client(start_proxy: StartProxy, clock: Clock) -> Client:
    return await start_proxy(monotonic=clock, revalidate_s=REVALIDATE_S)


@pytest.mark.parametrize("status", [403, 404])
async def test_a_refused_model_stays_refused_although_another_is_accepted(
    client: Client, upstream: ScriptedUpstream, status: int
) -> None:
    for model in ("a", "b"):
        await client.embed("x", model=model)
    upstream.reply = to_model(upstream, "b", status)
    assert (await client.embed("new", model="b")).status == status
    assert (await client.embed("new", model="a")).status == 200
    upstream.reply = OUTAGE
    assert (await client.embed("x", model="a")).cache == "HIT"
    assert (await client.embed("x", model="b")).status == 503
    upstream.reply = None
    assert (await client.embed("x", model="b")).cache == "HIT"
    upstream.reply = OUTAGE
    assert (await client.embed("x", model="b")).cache == "HIT"


async def test_a_refused_key_is_refused_every_model_it_was_accepted_for(
    client: Client, upstream: ScriptedUpstream
) -> None:
    for model in ("a", "b"):
        await client.embed("x", model=model)
    upstream.reply = to_model(upstream, "b", 401)
    assert (await client.embed("new", model="b")).status == 401
    upstream.reply = OUTAGE
    assert [(await client.embed("x", model=model)).status for model in ("a", "b")] == [503, 503]


@pytest.mark.parametrize("status", [302, 400, 402, 410])
async def test_any_error_response_to_a_stored_item_is_a_refusal(
    client: Client, upstream: ScriptedUpstream, clock: Clock, status: int
) -> None:
    """Gemini responds 400 to an unknown key."""
    await client.embed("x")
    clock.now += REVALIDATE_S
    upstream.reply = error_reply(status, {"error": {"message": "API key not valid"}})
    assert (await client.embed("x")).status == status
    upstream.reply = OUTAGE
    assert (await client.embed("x")).status == 503
    upstream.reply = None
    assert (await client.embed("x")).cache == "HIT"


@pytest.mark.parametrize("code", [401, 403])
async def test_a_refusal_inside_a_200_counts(
    client: Client, upstream: ScriptedUpstream, clock: Clock, code: int
) -> None:
    """As OpenRouter responds."""
    await client.embed("x")
    refusal = {"error": {"code": code, "message": "No auth credentials found"}}
    upstream.reply = error_reply(200, refusal)
    assert (await client.embed("new")).json == refusal
    for _ in range(2):
        assert (await client.embed("x")).json == refusal  # at once, and after it has been asked again
        clock.now += REVALIDATE_S
    upstream.reply = OUTAGE
    assert (await client.embed("x")).status == 503


@pytest.mark.parametrize("given", ["x", ["x", "x"]])
async def test_a_refusal_of_the_proxys_key_inside_a_200_is_not_relayed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, given: object
) -> None:
    client = await start_proxy(upstream=UpstreamSetting(name="s", base_url=upstream.base_url, key="held"))
    upstream.reply = lambda call: web.json_response({"error": {"code": 401, "message": call.headers["Authorization"]}})
    answer = await client.embed(given)
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_key_refused")
    assert "held" not in answer.text


async def test_an_unverified_client_does_not_learn_what_others_have_cached(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(shares_all=True)

    def guarded(call: Call) -> web.Response:
        return upstream.embed(call) if call.headers["Authorization"] == "Bearer good" else web.Response(status=401)

    upstream.reply = guarded
    await client.post({"model": "m", "input": ["x", "y"]}, key="Bearer good")
    for directive in ("only-if-cached", "max-age=60, only-if-cached", ""):
        told = {
            (answer.status, answer.body, answer.headers.get("X-Cache"), answer.headers.get("Cache-Status"))
            for given in ("x", "z", ["x", "y"], ["x", "z"])
            for answer in [await client.post({"model": "m", "input": given}, key="Bearer bad", Cache_Control=directive)]
        }
        assert len(told) == 1
    good = await client.post({"model": "m", "input": ["x", "z"]}, key="Bearer good", Cache_Control="only-if-cached")
    assert (good.status, good.json["error"]["message"]) == (504, "1 of 2 items are not cached.")


# --- with a fallback upstream


class Pair(NamedTuple):
    client: Client
    other: ScriptedUpstream


@pytest.fixture
async def pair(start_proxy: StartProxy, upstream: ScriptedUpstream) -> AsyncIterator[Pair]:
    async with ScriptedUpstream().serving() as other:
        first = UpstreamSetting(
            name="one", base_url=upstream.base_url, models=("m",), same_model=(SameModel(upstream="two"),)
        )
        second = UpstreamSetting(name="two", base_url=other.base_url, models=("n",))
        yield Pair(await start_proxy(routed=(first, second)), other)


@pytest.mark.parametrize("given", [["a"], ["a", "c"]], ids=["hit", "partial"])
async def test_a_refused_key_gets_what_a_fallback_computes_and_no_stored_item(
    pair: Pair, upstream: ScriptedUpstream, given: list[str]
) -> None:
    stored = (await pair.client.embed("a")).embeddings
    upstream.reply = error_reply(401, {})
    assert (await pair.client.embed("b")).status == 401
    upstream.reply = OUTAGE
    pair.other.dimensions = 8
    answer = await pair.client.embed(given)
    assert (answer.cache, set(map(len, answer.vectors))) == ("MISS", {8})
    assert "a" in [item for call in pair.other.calls for item in call.items]
    upstream.reply = None
    assert (await pair.client.embed("a")).embeddings == stored


async def test_a_fallback_does_not_reveal_another_clients_name_of_the_model(
    pair: Pair, upstream: ScriptedUpstream
) -> None:
    upstream.reply = lambda call: upstream.embed(call, model=f"model of {call.headers['Authorization']}")
    await pair.client.post({"model": "m", "input": "x"}, key="Bearer ann")
    await pair.client.post({"model": "m", "input": "x"}, key="Bearer bob")
    upstream.reply = OUTAGE
    for name in ("ann", "bob", "cat"):
        answer = await pair.client.post({"model": "m", "input": "y"}, key=f"Bearer {name}")
        assert answer.json["model"] == ("m" if name == "cat" else f"model of Bearer {name}")


async def test_what_is_missing_fails_as_it_did_though_the_credential_was_accepted_meanwhile(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """The upstream is down when it is asked for what is missing. That is no reason to serve a part of the request."""
    client = await start_proxy()
    assert (await client.embed("stored")).status == 200
    upstream.reply = error_reply(401, {"error": {"message": "no"}})
    assert (await client.embed("missing")).status == 401
    is_asked, may_respond = asyncio.Event(), asyncio.Event()

    async def reply(call: Call) -> web.StreamResponse:
        if "missing" not in call.items:
            return upstream.embed(call)
        is_asked.set()
        await may_respond.wait()
        return web.json_response({"error": {"message": "down"}}, status=503)

    upstream.reply = reply
    asking = asyncio.create_task(client.embed(["stored", "missing"]))
    await is_asked.wait()
    assert (await client.embed("another")).status == 200
    may_respond.set()
    response = await asking
    assert (response.status, response.json) == (503, {"error": {"message": "down"}})
