"""A credential in the query is treated like one in a header field."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from yarl import URL

from proxy.access import client_keys
from proxy.config.settings import SameModel, UpstreamSetting
from tests.conftest import StartProxy
from tests.support.client import Client, UpstreamResponse
from tests.support.guarded import Clock
from tests.support.scripted import Call, ScriptedUpstream, error_reply

BODY: dict[str, Any] = {"model": "m", "input": "x"}
SECRET = "c4nary"
QUERY = f"?a=1&key={SECRET}&b=%2F;Api%4Bey={SECRET}&code={SECRET}&api-version=2&sig={SECRET}&key="
LEFT = "?a=1&b=%2F&api-version=2"
TARGETS = ("/v1/embeddings", "/embeddings", "/openai/deployments/d/embeddings", "/v1/engines/e/embeddings")


async def ask(
    client: Client, query: str, *, key: str | None = None, model: str = "m", **headers: str
) -> UpstreamResponse:
    return await client.post(BODY | {"model": model}, target=f"/v1/embeddings{query}", key=key, **headers)


def queries(upstream: ScriptedUpstream) -> list[str]:
    return ["?" + call.target.partition("?")[2] for call in upstream.calls]


async def answer_anything(call: Call) -> web.StreamResponse:
    if call.headers.get("Upgrade") is None:
        return web.json_response({})
    socket = web.WebSocketResponse()
    await socket.prepare(call.request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
    return socket


# --- the proxy holds the key


@pytest.fixture
async def owning(start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path) -> tuple[Client, str]:
    key = client_keys.add(tmp_path / "clients", "app")
    setting = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="held")
    return await start_proxy(upstream=setting, client_keys=tmp_path / "clients"), f"Bearer {key}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("more", [{}, {"stream": True}, {"unknown": 1}], ids=["keyed", "bypass", "whole"])
async def test_with_a_proxy_key_query_credential_is_not_forwarded(
    owning: tuple[Client, str], upstream: ScriptedUpstream, target: str, more: dict[str, object]
) -> None:
    client, key = owning
    assert (await client.post(BODY | more, target=target + QUERY, key=key)).status == 200
    assert queries(upstream) == [LEFT]


async def test_with_a_proxy_key_query_credential_is_not_passed_through(
    owning: tuple[Client, str], upstream: ScriptedUpstream
) -> None:
    client, key = owning
    upstream.reply = answer_anything
    headers = {"Authorization": key}
    for method, target in (("GET", "/v1/files"), ("POST", "/v1/chat/completions"), ("POST", "/api/embed")):
        await client.send(method, target + QUERY, headers=headers, body=b"{}" if method == "POST" else None)
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    for target in ("/v1/embeddings", "/v1/files"):
        await client.send("OPTIONS", target + QUERY, headers=preflight)
    url = URL(client.origin + "/v1/realtime" + QUERY, encoded=True)
    async with client.session.ws_connect(url, headers=headers) as socket:
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello"
    assert queries(upstream) == [LEFT] * 6
    await client.send("GET", f"/v1/files?pageToken=1&key={SECRET}", headers=headers)
    assert queries(upstream)[-1] == "?pageToken=1"  # without it the first page would come for ever


async def test_with_a_proxy_key_query_credential_is_not_keyed(
    owning: tuple[Client, str], upstream: ScriptedUpstream
) -> None:
    client, key = owning
    assert [(await ask(client, f"?key={n}&a=1", key=key)).cache for n in range(3)] == ["MISS", "HIT", "HIT"]


async def test_client_key_in_the_query_is_not_accepted(owning: tuple[Client, str], upstream: ScriptedUpstream) -> None:
    """Servers and browsers write URLs into logs and histories."""
    client, key = owning
    for name in ("key", "api-key", "x-api-key", "Authorization"):
        assert (await ask(client, f"?{name}={key.removeprefix('Bearer ')}")).status == 401
    assert upstream.calls == []


@pytest.mark.parametrize("holds_keys", [False, True])
async def test_query_credential_is_not_sent_to_a_fallback(
    start_proxy: StartProxy, upstream: ScriptedUpstream, holds_keys: bool
) -> None:
    async with ScriptedUpstream().serving() as other:
        first = UpstreamSetting(
            name="one", base_url=upstream.base_url, models=("m",), same_model=(SameModel(upstream="two", model="n"),),
            key="held 1" if holds_keys else None,
        )  # fmt: skip
        second = UpstreamSetting(
            name="two", base_url=other.base_url, models=("n",), key="held 2" if holds_keys else None
        )
        default = UpstreamSetting(name="d", base_url=upstream.base_url, key="held 3" if holds_keys else None)
        client = await start_proxy(upstream=default, routed=(first, second))
        upstream.reply = error_reply(503, {})
        for target in TARGETS:
            body = {"model": "m", "input": target}
            await client.post(body, target=target.replace("engines/e", "engines/m") + QUERY, key=None)
        assert set(queries(upstream)) == {LEFT if holds_keys else QUERY}
        assert len(other.calls) >= 3
        assert SECRET not in str([(call.target, call.headers) for call in other.calls])


# --- the client's own is the client's identity


async def test_each_query_credential_has_its_own_entries(client: Client, upstream: ScriptedUpstream) -> None:
    queries = ("?key=1", "?key=2", "?api_key=1", "?k%65y=1", "?key=1&key=2", "?key=", "?code=1", "?code=2", "")
    assert [(await ask(client, query)).cache for query in queries] == ["MISS"] * len(queries)
    assert [(await ask(client, query)).cache for query in queries] == ["HIT"] * len(queries)


async def test_header_field_of_the_same_name_is_another_credential(client: Client) -> None:
    assert (await ask(client, "?api-key=1")).cache == "MISS"
    assert (await ask(client, "", api_key="1")).cache == "MISS"


async def test_in_a_shared_scope_accepted_query_credentials_share_entries(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(shares_all=True)
    good = {"?a=1&key=first", "?a=1&key=second"}
    upstream.reply = lambda call: (
        upstream.embed(call) if "?" + call.target.partition("?")[2] in good else web.Response(status=401)
    )
    assert (await ask(client, "?a=1&key=first")).cache == "MISS"
    assert (await ask(client, "?a=1&key=second")).cache == "HIT"
    calls = len(upstream.calls)
    assert (await ask(client, "?a=1&key=second")).cache == "HIT"
    assert len(upstream.calls) == calls
    for stranger in ("?a=1&key=third", "?a=1", "?a=1&Key=first", "?a=1&key=first&key=third", "?a=1&token=first"):
        assert (await ask(client, stranger)).status == 401


async def test_in_a_shared_scope_ambiguous_query_fields_are_keyed(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(shares_all=True)
    assert [(await ask(client, f"?code={code}")).cache for code in ("fr", "en", "fr")] == ["MISS", "MISS", "HIT"]


async def test_refused_query_credential_loses_its_validations(client: Client, upstream: ScriptedUpstream) -> None:
    for model in ("m", "n"):
        assert (await ask(client, "?key=1", model=model)).cache == "MISS"
    upstream.reply = error_reply(401, {})
    assert (await client.post(BODY | {"input": "y"}, target="/v1/embeddings?key=1", key=None)).status == 401
    for model in ("m", "n"):
        assert (await ask(client, "?key=1", model=model)).status == 401
    upstream.reply = error_reply(503, {})
    for model in ("m", "n"):
        assert (await ask(client, "?key=1", model=model)).status == 503  # no answer is no permission


@pytest.mark.parametrize(("query", "cache"), [("?key=1", "HIT"), ("?code=fr", "MISS"), ("?tenant=a", "MISS")])
async def test_cookie_beside_a_credential_is_not_keyed(client: Client, query: str, cache: str) -> None:
    assert (await ask(client, query, Cookie="session=1")).cache == "MISS"
    assert (await ask(client, query, Cookie="session=2")).cache == cache


async def test_query_signature_is_sent_only_with_its_body(client: Client, upstream: ScriptedUpstream) -> None:
    query = "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a&X-Amz-Signature=b"
    answer = await ask(client, query)
    assert answer.headers["Cache-Status"] == "embedding-proxy; fwd=bypass; detail=signed-body"
    assert queries(upstream) == [query]


async def test_query_credential_is_forwarded_unchanged(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = upstream.embed
    await asyncio.gather(*(client.post(BODY | {"input": f"{n}"}, target="/v1/embeddings" + QUERY) for n in range(9)))
    upstream.reply = answer_anything
    await client.send("GET", "/v1/files" + QUERY)
    assert set(queries(upstream)) == {QUERY}


async def test_each_query_credential_is_revalidated_separately(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    clock = Clock()
    client = await start_proxy(monotonic=clock, revalidate_s=600.0)
    for key in "12":
        assert (await ask(client, f"?api-version=1&key={key}")).cache == "MISS"
    clock.now += 600.0
    upstream.reply = lambda call: upstream.embed(call) if call.target.endswith("1") else web.Response(status=403)
    assert (await ask(client, "?api-version=1&key=2")).status == 403
    assert (await ask(client, "?api-version=1&key=1")).cache == "HIT"
