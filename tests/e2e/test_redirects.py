"""Redirects are relayed, never followed, logged once, and never lead a client past the proxy."""

import pytest
from aiohttp import web

from proxy.config.settings import UpstreamSetting
from tests.conftest import StartProxy
from tests.e2e.test_paths import BODY, said
from tests.support.client import KEY, Client, raw
from tests.support.scripted import Call, ScriptedUpstream, error_reply
from tests.upstream.test_router import others, setting

__all__ = ["others"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_of_embeddings_is_relayed_and_logged_once(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    upstream.reply = error_reply(status, b"moved", location="https://new.example/api/v1/embeddings?code=secret")
    for n in range(3):
        answer = await client.embed(str(n))
        assert (answer.status, answer.body) == (status, b"moved")
        assert answer.headers["Location"] == "https://new.example/api/v1/embeddings?code=secret"
    (line,) = said(caplog)
    assert line == (
        f"upstream scripted redirects embeddings calls ({status}, to https://new.example/api/v1/embeddings);"
        " redirects are not followed: set --upstream https://new.example/api/v1 (base_url, if it has an [[upstream]]"
        " table) (logged once)"
    )


async def test_redirect_of_a_bypassed_embeddings_call_is_logged(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.reply = error_reply(308, b"", location="/v2/embeddings")
    assert (await client.embed("x", stream=True)).cache == "BYPASS"
    assert f"set --upstream {upstream.base_url.removesuffix('1')}2 " in said(caplog)[-1]


async def test_redirect_log_hides_the_client_path(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    target = "/v1/engines/secret/embeddings"
    upstream.reply = error_reply(308, b"", location="https://new.example/v2" + target.removeprefix("/v1"))
    assert (await client.post({"input": "x"}, target=target)).status == 308
    (line,) = said(caplog)
    assert "(308, to https://new.example/v2/engines/…/embeddings)" in line
    assert "set --upstream https://new.example/v2 " in line


async def test_redirect_of_another_route_is_not_logged(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.reply = error_reply(308, b"", location="/v2/models")
    await client.send("GET", "/v1/models")
    await client.post(BODY, target="/v1/chat/completions")
    assert said(caplog) == []


async def follow(client: Client, method: str, target: str) -> list[str]:
    """The targets on the proxy that a client comes by that follows redirects."""
    seen: list[str] = []
    async with client.session.request(
        method, client.origin + target, json=BODY if method == "POST" else None, headers={"Authorization": KEY}
    ) as answer:
        for step in (*answer.history, answer):
            assert str(step.url).startswith(client.origin + "/"), "past the proxy"
            seen.append(step.url.raw_path_qs)
    return seen


@pytest.mark.parametrize(
    "location", ["{origin}/v1/embeddings/new?a=b", "/v1/embeddings/new?a=b", "embeddings/new?a=b", "{origin}//x/../y"]
)
@pytest.mark.parametrize(("method", "at"), [("POST", "/v1/embeddings"), ("GET", "/v1/models"), ("POST", "/v1/files")])
async def test_redirect_to_the_upstream_leads_back_to_the_proxy(
    client: Client, upstream: ScriptedUpstream, method: str, at: str, location: str
) -> None:
    origin = upstream.base_url.removesuffix("/v1")

    def reply(call: Call) -> web.Response:
        if call.target == at:
            return web.Response(status=307, headers={"Location": location.format(origin=origin)})
        return web.Response(body=call.target.encode())

    upstream.reply = reply
    assert len(await follow(client, method, at)) == 2
    want = "//y" if "//" in location.removeprefix("{origin}") else "/v1/embeddings/new?a=b"
    assert [call.target for call in upstream.calls][-1] == want
    assert [call.method for call in upstream.calls] == [method, method]


async def test_redirect_out_of_the_base_path_is_followed_through_the_proxy(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    origin = upstream.base_url.removesuffix("/v1")
    client = await start_proxy(upstream=UpstreamSetting(name="u", base_url=origin + "/api/v1"))
    upstream.reply = lambda call: web.Response(
        status=307 if call.target.startswith("/api") else 200, headers={"Location": "/v1/embeddings"}
    )
    assert await follow(client, "POST", "/v1/embeddings") == ["/v1/embeddings", "/.upstream/v1/embeddings"]
    assert [call.target for call in upstream.calls] == ["/api/v1/embeddings", "/v1/embeddings"]


async def test_location_in_an_embeddings_response_is_on_this_proxy(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda call: web.json_response(
        upstream.answer_to(call.json), headers={"Content-Location": upstream.base_url + "/embeddings"}
    )
    assert (await client.embed("x")).headers["Content-Location"] == "/v1/embeddings"


async def test_location_of_a_created_resource_is_on_this_proxy(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = error_reply(201, b"", location=upstream.base_url + "/files/1", content_location="/v1/files/1")
    answer = await client.post(b"{}", target="/v1/files")
    assert (answer.headers["Location"], answer.headers["Content-Location"]) == ("/v1/files/1", "/v1/files/1")


async def test_location_at_a_non_default_upstream_reaches_no_other(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await start_proxy(routed=(setting("one", others[0], "gpu"),))
    other = others[0]
    for path, target in (("/v1/embeddings/new", "/v1/embeddings/new"), ("/v1/jobs/1", None)):
        other.reply = error_reply(307, b"", location=other.base_url.removesuffix("/v1") + path)
        for answer in (await client.embed("x", model="gpu"), await client.embed("x", model="gpu", stream=True)):
            assert (answer.status, answer.headers.get("Location")) == (307, target)
    assert not upstream.calls


@pytest.mark.parametrize("status", [301, 302, 307])
async def test_websocket_handshake_follows_no_redirect(
    client: Client, upstream: ScriptedUpstream, others: list[ScriptedUpstream], status: int
) -> None:
    upstream.reply = error_reply(status, b"", location=others[0].base_url + "/realtime")
    head = "GET /v1/realtime HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    answer = await raw(client, (head + key).encode(), end=b"\r\n\r\n")
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert f"Location: {others[0].base_url}/realtime".encode() in answer
    assert not others[0].calls
    upstream.reply = error_reply(status, b"", location=upstream.base_url + "/other")
    answer = await raw(client, (head + key).encode(), end=b"\r\n\r\n")
    assert b"Location: /v1/other\r\n" in answer
    assert len(upstream.calls) == 2
