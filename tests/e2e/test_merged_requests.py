"""Merging must not change the result of any request."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pybase64
import pytest
from aiohttp import web

from proxy.config.settings import SameModel, StoreSetting, UpstreamSetting
from proxy.protocol.providers import PROVIDERS
from tests.conftest import StartProxy
from tests.support.client import Client, UpstreamResponse
from tests.support.gate import Gate
from tests.support.in_flight import queued, waiting
from tests.support.scripted import Call, Reply, ScriptedUpstream, error_reply
from tests.upstream.test_router import setting

Ask = tuple[dict[str, Any], dict[str, str]]  # a body, and header fields


async def behind_a_first(
    client: Client, upstream: ScriptedUpstream, asks: Sequence[Ask], reply: Reply
) -> list[UpstreamResponse]:
    """The answers to requests that gather while a call is under way, and leave together; ``reply`` answers them."""
    gate = Gate(upstream)
    first = asyncio.create_task(client.post({**asks[0][0], "input": "first"}))
    await gate.calls(1)
    rest = [asyncio.create_task(client.post(body, **fields)) for body, fields in asks]
    await queued(client, 1 + len(rest))
    upstream.reply = reply
    gate.open()
    await first
    return [await one for one in rest]


def body(given: str, model: str = "m") -> dict[str, Any]:
    return {"model": model, "input": given}


async def test_items_of_a_fusing_model_are_never_merged(client: Client, upstream: ScriptedUpstream) -> None:
    model = "google/gemini-embedding-2-preview"

    def fused(call: Call) -> web.Response:
        one = upstream.embedding(call.json, repr(call.json["input"]), 16)
        return upstream.embed(call, data=[{"index": i, "embedding": one} for i in range(len(call.items))])

    asks: list[Ask] = [(body(text, model), {}) for text in "abc"]
    answers = await behind_a_first(client, upstream, asks, fused)
    assert sorted(str(call.json["input"]) for call in upstream.calls) == ["a", "b", "c", "first"]
    assert len({str(answer.embeddings) for answer in answers}) == 3


@pytest.mark.parametrize(
    ("field", "value"), [("If-Match", '"v1"'), ("Accept", "application/xml"), ("x-litellm-timeout", "0.001")]
)
async def test_header_of_one_client_is_not_sent_for_a_merged_call(
    start_proxy: StartProxy, upstream: ScriptedUpstream, field: str, value: str
) -> None:
    client = await start_proxy(upstream=UpstreamSetting(name="s", base_url=upstream.base_url, key="sk-held"))

    def reply(call: Call) -> web.Response:
        if call.headers.get(field) == value:
            return web.json_response({"error": field}, status=408)
        return upstream.embed(call)

    asks = [
        (body("of A"), {"User_Agent": "A", "X_Both": "1", field: value, "Cookie": "of=A"}),
        (body("of B"), {"User_Agent": "B", "X_Both": "1"}),
    ]
    answers = await behind_a_first(client, upstream, asks, reply)
    assert [answer.status for answer in answers] == [200, 200]
    assert [call.json["input"] for call in upstream.calls] == ["first", ["of A", "of B"]]
    said = upstream.calls[-1].headers
    assert (said["X-Both"], said["User-Agent"], said["Content-Type"]) == ("1", "A", "application/json")
    assert field not in said
    assert "Cookie" not in said


@pytest.mark.relays_refusals
async def test_refused_merged_call_leaks_no_cookie(client: Client, upstream: ScriptedUpstream) -> None:
    asks: list[Ask] = [(body(text), {}) for text in "ab"]
    answers = await behind_a_first(client, upstream, asks, error_reply(429, b"{}", Set_Cookie="a=b", Retry_After="7"))
    assert [(answer.status, answer.headers["Retry-After"]) for answer in answers] == [(429, "7")] * 2
    assert not any("Set-Cookie" in answer.headers for answer in answers)


@pytest.mark.relays_refusals
async def test_429_of_one_credential_does_not_affect_another(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(shares_all=True)
    for key in ("Bearer A", "Bearer B"):
        await client.post(body(key), key=key)

    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def reply(call: Call) -> web.Response:
        arrived.set()
        await go_on.wait()
        if call.headers["Authorization"] == "Bearer B":
            return upstream.embed(call)
        return web.json_response({"error": {"message": "org-A"}}, status=429, headers={"Set-Cookie": "session=A"})

    upstream.reply = reply
    requests = [asyncio.create_task(client.post(body("x"), key="Bearer A"))]
    await arrived.wait()
    requests += [asyncio.create_task(client.post(body("x"), key=key)) for key in ("Bearer A", "Bearer B")]
    await waiting(client, 3)
    go_on.set()
    leader, follower, other = [await one for one in requests]
    assert [leader.status, follower.status, other.status] == [429, 429, 200]
    assert "Set-Cookie" in leader.headers
    assert "Set-Cookie" not in follower.headers
    assert other.embeddings == (await client.post(body("x"), key="Bearer B")).embeddings


# --- who stands in


@pytest.fixture
async def other() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream().serving() as upstream:
        yield upstream


async def test_no_failover_if_any_part_would_be_read_differently(
    start_proxy: StartProxy, upstream: ScriptedUpstream, other: ScriptedUpstream
) -> None:
    nim = UpstreamSetting(name="nim", base_url=other.base_url, models=("n",), provider=PROVIDERS["nvidia"])
    client = await start_proxy(routed=(setting("one", upstream, "m", same=(SameModel(upstream="nim"),)), nim))
    asset = '<img src="data:image/png;asset_id,1"/>'
    asks: list[Ask] = [(body(text), {}) for text in ("plain", asset)]
    answers = await behind_a_first(client, upstream, asks, error_reply(503, {}))
    assert [answer.status for answer in answers] == [503, 503]
    assert not other.calls


async def test_failover_is_logged_at_most_once_a_minute(
    start_proxy: StartProxy, upstream: ScriptedUpstream, other: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    first = setting("one", upstream, "m", same=(SameModel(upstream="two"),))
    client = await start_proxy(routed=(first, setting("two", other, "n")))
    upstream.reply = error_reply(503, {})
    for text in "abc":
        await client.embed(text)
    assert [record.getMessage() for record in caplog.records if record.name == "proxy.fetch.failover"] == [
        "upstream one failed (status 503); using fallback two"
    ]


async def test_fallback_response_is_checked_against_its_own_model_name(
    start_proxy: StartProxy, upstream: ScriptedUpstream, other: ScriptedUpstream
) -> None:
    first = setting("one", upstream, "m", same=(SameModel(upstream="two", model="jina-colbert-v2"),))
    client = await start_proxy(routed=(first, setting("two", other, "n")))
    upstream.reply = error_reply(503, {})
    flat = pybase64.b64encode(np.arange(1, 13, dtype="<f4").tobytes()).decode()
    other.reply = lambda _: web.json_response({"data": [{"index": 0, "embedding": flat}]})
    assert (await client.embed("x", encoding_format="base64")).status == 503
    assert not other.calls


@pytest.mark.parametrize("code", [502, 429, 400])
async def test_error_in_a_200_fails_over_like_its_status(
    start_proxy: StartProxy, upstream: ScriptedUpstream, other: ScriptedUpstream, code: int
) -> None:
    first = setting("one", upstream, "m", same=(SameModel(upstream="two"),))
    client = await start_proxy(routed=(first, setting("two", other, "n")))
    upstream.reply = error_reply(200, {"error": {"code": code, "message": "no"}})
    answer = await client.embed("x")
    if code == 400:
        assert answer.json == {"error": {"code": code, "message": "no"}}
        assert not other.calls
    else:
        assert (answer.status, answer.embeddings) == (200, [other.embedding({"model": "m"}, "x", 16)])
        assert [call.json["input"] for call in other.calls] == ["x"]
    other.reply = upstream.reply = error_reply(200, {"error": {"code": 500, "message": "not either"}})
    assert (await client.embed("y")).json == {"error": {"code": 500, "message": "not either"}}


async def test_fallback_success_does_not_validate_for_entries_of_others(
    start_proxy: StartProxy, upstream: ScriptedUpstream, other: ScriptedUpstream
) -> None:
    first = setting("one", upstream, "m", same=(SameModel(upstream="two"),))
    client = await start_proxy(shares_all=True, routed=(first, setting("two", other, "n")))

    def of_a_alone(call: Call) -> web.Response:
        is_a = call.headers["Authorization"] == "Bearer A"
        return upstream.embed(call) if is_a else web.json_response({}, status=401)

    asked = {"model": "m", "input": ["x", "y"]}
    upstream.reply = of_a_alone
    good = await client.post(asked, key="Bearer A")
    assert (await client.post(asked, key="Bearer B")).status == 401
    upstream.reply = error_reply(503, {})
    other.reply = lambda call: other.embed(call, data=[{"index": i, "embedding": [1.0, i + 2.0]} for i in range(2)])
    apart = await client.post(asked, key="Bearer B")
    assert (apart.status, apart.cache) == (200, "MISS")
    assert apart.embeddings == [[1.0, 2.0], [1.0, 3.0]]
    again = await client.post(asked, key="Bearer A")
    assert (again.cache, again.embeddings) == ("HIT", good.embeddings)


async def test_fallback_before_the_model_name_is_known_replaces_no_entry(
    start_proxy: StartProxy, upstream: ScriptedUpstream, other: ScriptedUpstream, sqlite_path: Path
) -> None:
    routed = (setting("one", upstream, "m", same=(SameModel(upstream="two"),)), setting("two", other, "n"))
    store = StoreSetting(path=sqlite_path)

    def named(call: Call) -> web.Response:
        return upstream.embed(call, model="m-2026")

    def other_bits(call: Call) -> web.Response:
        said = other.answer_to(call.json)
        for datum in said["data"]:
            datum["embedding"] = [value * (1 + 1e-6) for value in datum["embedding"]]
        return web.json_response(said)

    upstream.reply, other.reply = named, other_bits
    before = await (await start_proxy(store=store, routed=routed)).embed(["a"])
    restarted = await start_proxy(store=store, routed=routed)
    upstream.reply = error_reply(503, {})
    down = await restarted.embed(["a", "b"])
    assert (down.cache, down.json["model"]) == ("PARTIAL", "m-2026")
    assert down.embeddings[0] == before.embeddings[0]
    upstream.reply = named
    back = await restarted.embed(["a", "b", "c"])
    assert (back.cache, back.json["model"]) == ("PARTIAL", "m-2026")
    assert back.embeddings[:2] == down.embeddings
    alone = await restarted.embed(["b"])
    assert (alone.cache, alone.json["model"]) == ("HIT", "m")
