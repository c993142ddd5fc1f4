"""CORS where the upstream decides: other responses of the route, and preflights."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict

from proxy.access import client_keys
from proxy.config.settings import SameModel, UpstreamSetting
from proxy.protocol.cors import is_preflight
from tests.conftest import StartProxy
from tests.support.client import KEY, Client
from tests.support.gate import Gate
from tests.support.in_flight import waiting
from tests.support.pages import (
    ALLOW_ORIGIN,
    OTHER,
    PAGE,
    PREFLIGHT,
    Browsable,
    abort,
    ask,
    cors,
    nobody,
    owning,
    preflight,
    reflects,
)
from tests.support.scripted import ScriptedUpstream, error_reply


async def test_a_partial_answer_has_the_fields(client: Client, upstream: ScriptedUpstream) -> None:
    Browsable(upstream, reflects)
    miss = await ask(client, "x", PAGE)
    partial = await ask(client, ["x", "y"], PAGE)
    assert partial.cache == "PARTIAL"
    assert cors(partial) == cors(miss)


async def test_a_bypass_has_the_upstreams_fields_and_teaches_them(client: Client, upstream: ScriptedUpstream) -> None:
    served = Browsable(upstream, nobody)
    await ask(client, "x", PAGE)
    served.policy = reflects
    bypass = await client.post({"model": "m", "input": "x", "stream": True}, Origin=PAGE)
    assert bypass.cache == "BYPASS"
    assert cors(bypass) == cors(await ask(client, "x", PAGE))
    assert bypass.headers[ALLOW_ORIGIN] == PAGE


@pytest.mark.parametrize("fails", [False, True])
async def test_a_response_to_another_page_is_made_the_own(
    client: Client, upstream: ScriptedUpstream, fails: bool
) -> None:
    """Of two pages that ask for the same item at once, the second gets what was answered to the first."""
    served = Browsable(upstream, reflects)
    for page in (PAGE, OTHER):
        await preflight(client, Origin=page)
    gate = Gate(upstream)
    answers = []
    origins: list[str | None] = [PAGE, OTHER, None]
    for number, origin in enumerate(origins, start=1):
        answers.append(asyncio.create_task(ask(client, "x", origin)))
        await waiting(client, number)
    await gate.calls(1)
    gate.answer = served.unavailable if fails else served
    gate.open()
    got = await asyncio.gather(*answers)
    assert [answer.status for answer in got] == [503 if fails else 200] * 3
    assert [answer.headers.get(ALLOW_ORIGIN) for answer in got] == [PAGE, OTHER, None]
    assert [call.method for call in upstream.calls] == ["OPTIONS", "OPTIONS", "POST"]


async def test_pages_of_two_origins_are_not_merged_into_one_call(client: Client, upstream: ScriptedUpstream) -> None:
    served = Browsable(upstream, reflects)
    gate = Gate(upstream)
    gate.answer = served
    answers = [asyncio.create_task(ask(client, "first", PAGE))]
    await gate.calls(1)
    sent = [("a", PAGE), ("b", PAGE), ("c", OTHER), ("d", None)]
    answers += [asyncio.create_task(ask(client, text, origin)) for text, origin in sent]
    await waiting(client, 5)
    gate.open()
    got = await asyncio.gather(*answers)
    assert [answer.headers.get(ALLOW_ORIGIN) for answer in got] == [PAGE, PAGE, PAGE, OTHER, None]
    assert sorted(call.items for call in upstream.calls) == [["a", "b"], ["c"], ["d"], ["first"]]


async def test_the_proxys_own_errors_have_the_fields(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    key = client_keys.add(tmp_path / "clients", "app")
    own = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-owned")
    client = await start_proxy(upstream=own, client_keys=tmp_path / "clients", max_body_bytes=1000)
    Browsable(upstream, reflects)
    await client.post({"model": "m", "input": "x"}, key=f"Bearer {key}", Origin=PAGE)
    unknown = await ask(client, "x", PAGE)
    large = await client.post({"model": "m", "input": "x" * 1000}, key=f"Bearer {key}", Origin=PAGE)
    missing = {"Cache_Control": "only-if-cached", "Origin": PAGE}
    missed = await client.post({"model": "m", "input": "y"}, key=f"Bearer {key}", **missing)
    upstream.reply = error_reply(401, b"bad key sk-owned")
    refused = await client.post({"model": "m", "input": "y"}, key=f"Bearer {key}", Origin=PAGE)
    answers = [unknown, large, missed, refused]
    assert [answer.status for answer in answers] == [401, 413, 504, 502]
    assert [answer.headers.get(ALLOW_ORIGIN) for answer in answers] == [PAGE] * 4


async def test_an_upstream_that_can_not_be_reached_is_told_to_the_page(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    served = Browsable(upstream, reflects)
    client = await start_proxy()
    await ask(client, "x", PAGE)
    upstream.reply = abort
    failed = await ask(client, "y", PAGE)
    assert (failed.status, failed.headers[ALLOW_ORIGIN]) == (502, PAGE)
    upstream.reply = served


async def test_each_upstream_speaks_for_itself(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    async with ScriptedUpstream().serving() as second:
        Browsable(upstream, reflects)
        Browsable(second, nobody)
        routed = UpstreamSetting(name="second", base_url=second.base_url, models=("other",))
        client = await start_proxy(routed=(routed,))
        for model in ("m", "other"):
            await client.embed("x", model=model, headers={"Origin": PAGE})
        hits = [await client.embed("x", model=model, headers={"Origin": PAGE}) for model in ("m", "other")]
        assert [hit.headers.get(ALLOW_ORIGIN) for hit in hits] == [PAGE, None]
        assert [hit.cache for hit in hits] == ["HIT", "HIT"]


async def test_a_hit_on_what_a_fallback_computed_has_the_fields_of_its_answer(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    async with ScriptedUpstream().serving() as second:
        upstream.reply = error_reply(503, b"{}")
        Browsable(second, reflects)
        first = UpstreamSetting(
            name="first", base_url=upstream.base_url, same_model=(SameModel(upstream="second"),), models=("m",)
        )
        client = await start_proxy(upstream=UpstreamSetting(name="second", base_url=second.base_url), routed=(first,))
        miss, hit = [await ask(client, "x", PAGE) for _ in range(2)]
        assert (miss.cache, hit.cache) == ("MISS", "HIT")
        assert cors(hit) == cors(miss)
        assert hit.headers[ALLOW_ORIGIN] == PAGE


async def test_other_routes_are_as_the_upstream_has_them(client: Client, upstream: ScriptedUpstream) -> None:
    served = Browsable(upstream, reflects)
    await ask(client, "x", PAGE)
    upstream.reply = lambda call: served.answer(call, web.json_response({}, headers={"X-Cache": "MISS"}))
    answer = await client.send("GET", "/v1/models", headers={"Origin": PAGE, "Authorization": KEY})
    assert cors(answer) == {
        "access-control-allow-origin": [PAGE], "access-control-allow-credentials": ["true"], "vary": ["Origin"]
    }  # fmt: skip
    upstream.reply = error_reply(200, b"{}")
    assert cors(await client.send("GET", "/v1/models", headers={"Origin": PAGE, "Authorization": KEY})) == {}


@pytest.mark.parametrize("target", ["/v1/embeddings", "/v1/models?x=1"])
async def test_a_preflight_goes_up_without_any_key(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, target: str
) -> None:
    client, key = await owning(start_proxy, upstream, tmp_path)
    Browsable(upstream, reflects)
    answer = await preflight(client, target, Cookie="a=b", X_Api_Key=key, Authorization=key)
    assert answer.status == 204
    assert cors(answer) == {
        "access-control-allow-origin": [PAGE],
        "access-control-allow-credentials": ["true"],
        "access-control-allow-methods": ["POST"],
        "access-control-allow-headers": ["authorization, content-type"],
        "vary": ["Origin"],
    }
    (call,) = upstream.calls
    assert (call.method, call.target, call.body) == ("OPTIONS", target, b"")
    assert {name: call.headers.get(name) for name in PREFLIGHT} == PREFLIGHT
    assert not {"Authorization", "Cookie", "X-Api-Key"} & {*call.headers}
    assert "sk-owned" not in str(call.headers)


async def test_an_upstream_that_refuses_a_preflight_has_refused_no_key(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    client, _ = await owning(start_proxy, upstream, tmp_path)
    upstream.reply = error_reply(401, b"who are you")
    answer = await preflight(client)
    assert (answer.status, answer.body) == (401, b"who are you")


@pytest.mark.parametrize(
    ("method", "fields", "body"),
    [
        ("OPTIONS", {**PREFLIGHT, "Origin": None}, None),
        ("OPTIONS", {**PREFLIGHT, "Access-Control-Request-Method": None}, None),
        ("OPTIONS", PREFLIGHT, b"{}"),
        ("GET", PREFLIGHT, None),
        ("POST", PREFLIGHT, b"{}"),
        ("HEAD", PREFLIGHT, None),
    ],
)
async def test_only_a_preflight_passes_without_a_key(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, method: str, fields: Any, body: bytes | None
) -> None:
    client, _ = await owning(start_proxy, upstream, tmp_path)
    headers = {name: value for name, value in fields.items() if value}
    assert (await client.send(method, "/v1/embeddings", headers=headers, body=body)).status == 401
    assert not upstream.calls


def test_a_body_in_chunks_makes_no_preflight() -> None:
    assert is_preflight("OPTIONS", CIMultiDict({**PREFLIGHT, "Content-Length": "0"}))
    assert not is_preflight("OPTIONS", CIMultiDict({**PREFLIGHT, "Transfer-Encoding": "chunked"}))


async def test_a_preflight_to_a_proxy_without_a_key_is_untouched(client: Client, upstream: ScriptedUpstream) -> None:
    Browsable(upstream, reflects)
    answer = await preflight(client, Authorization=KEY)
    assert answer.headers["Access-Control-Allow-Methods"] == "POST"
    assert upstream.calls[0].headers["Authorization"] == KEY
