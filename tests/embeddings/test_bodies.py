"""Bodies of requests and responses: their size, and what is in them besides vectors."""

import asyncio
from typing import Any

import orjson
import pytest
from aiohttp import web

from proxy.config.settings import UpstreamSetting
from tests.conftest import StartProxy
from tests.support.client import Client, raw
from tests.support.scripted import Call, ScriptedUpstream, error_reply


async def test_a_body_over_the_limit_is_refused_before_it_is_read(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(max_body_bytes=1000)
    answer = await client.embed("x" * 1000)
    assert (answer.status, answer.json["error"]["code"]) == (413, "body_too_large")
    assert not upstream.calls


async def test_a_chunked_body_over_the_limit_is_refused(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(max_body_bytes=1000)

    async def chunks() -> Any:
        for _ in range(10):
            yield b"x" * 500

    async with client.session.post(client.origin + "/v1/embeddings", data=chunks()) as response:
        assert response.status == 413
        assert (await response.json())["error"]["type"] == "invalid_request_error"
    assert not upstream.calls


async def test_megabytes_of_tokens(client: Client, upstream: ScriptedUpstream) -> None:
    tokens = [[(i * j) % 100_000 for i in range(1, 301)] for j in range(1, 2049)]
    assert len(orjson.dumps(tokens)) > 3_000_000
    miss = await client.embed(tokens, encoding_format="base64")
    hit = await client.embed(tokens, encoding_format="base64")
    assert (miss.cache, hit.cache) == ("MISS", "HIT")
    assert miss.embeddings == hit.embeddings
    assert len(hit.embeddings) == 2048


async def test_expect_100_continue_gets_a_response(client: Client) -> None:
    async with client.session.post(
        client.origin + "/v1/embeddings", json={"model": "m", "input": "x"}, expect100=True
    ) as response:
        assert response.status == 200


async def test_no_100_continue_before_a_refusal_nor_to_http_1_0(start_proxy: StartProxy) -> None:
    client = await start_proxy(max_body_bytes=1000)
    head = b"POST /v1/embeddings HTTP/%s\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    assert (await raw(client, head % (b"1.1", 5000), end=b"}}")).startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in await raw(client, head % (b"1.0", 2) + b"{}")


async def test_an_upstreams_own_x_cache_gives_way_to_ours(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda call: web.json_response(
        upstream.answer_to(call.json), headers={"X-Cache": "Miss from cdn", "Content-Digest": "sha-256=:x:"}
    )
    answer = await client.embed("x")
    assert answer.headers.getall("X-Cache") == ["MISS"]
    assert "Content-Digest" not in answer.headers


@pytest.mark.parametrize("fields", [{}, {"foo": 1}])
async def test_cache_status_is_added_to_that_of_other_caches(
    client: Client, upstream: ScriptedUpstream, fields: dict[str, Any]
) -> None:
    upstream.reply = error_reply(400, b"{}", Cache_Status="cdn; fwd=miss")
    answer = await client.embed("x", **fields)
    said = answer.headers.getall("Cache-Status")
    assert [status.partition(";")[0] for status in said] == ["cdn", "embedding-proxy"]
    assert answer.headers["X-Request-Id"]


async def test_extra_fields_of_an_upstream_are_in_the_response(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda call: upstream.embed(call, id="gen-1", provider="x", created=1)
    miss, hit = await client.embed(["a", "b"]), await client.embed(["a", "b"])
    assert {name: miss.json.get(name) for name in ("id", "provider", "created")} == {
        "id": "gen-1",
        "provider": "x",
        "created": 1,
    }
    assert set(hit.json) == {"object", "data", "model", "usage"}


@pytest.mark.parametrize("name", ["usage", "extra"])
async def test_what_can_not_be_written_again_is_left_out(client: Client, upstream: ScriptedUpstream, name: str) -> None:
    deep = b'{"prompt_tokens":1,"total_tokens":1,"x":' + b"[" * 300 + b"]" * 300 + b"}"

    def reply(call: Call) -> web.Response:
        rest = upstream.answer_to(call.json)
        del rest["usage"]
        body = orjson.dumps(rest)[:-1] + b',"%b":%b}' % (name.encode(), deep)
        return web.Response(body=body, content_type="application/json")

    upstream.reply = reply
    for _ in range(2):
        answer = await client.embed("x")
        assert (answer.status, set(answer.json)) == (200, {"object", "data", "model", "usage"})


async def test_tokens_beyond_counting_count_for_nothing(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(reports_full_usage=True)
    upstream.reply = lambda call: upstream.embed(call, usage={"prompt_tokens": 2**64 - 1, "total_tokens": 3})
    answer = await client.embed(["x", "y", "x"])
    assert (answer.status, answer.json["usage"]["total_tokens"]) == (200, 5)


GOOD = b'{"data":[{"embedding":[0.5,1]}]}'


@pytest.mark.parametrize("fields", [{}, {"foo": 1}], ids=["cached", "bypassed"])
@pytest.mark.parametrize(
    ("line", "field"),
    [(b"200 OK", b"X-Big: " + b"a" * 60_000), (b"200 OK", b"X-C: a\x01b"), (b"200 a\x01b", b"X-C: a")],
    ids=["long", "control", "reason"],
)
async def test_unusual_heads_of_upstream_responses_do_not_fail_the_request(
    start_proxy: StartProxy, line: bytes, field: bytes, fields: dict[str, Any]
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        head = b"HTTP/1.1 %b\r\n%b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        writer.write(head % (line, field, len(GOOD)) + GOOD)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        client = await start_proxy(upstream=UpstreamSetting(name="o", base_url=url))
        body = orjson.dumps({"model": "m", "input": "x", **fields})
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        answer = await raw(client, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\x01" not in answer
    assert (b"a" * 60_000 in answer) == field.startswith(b"X-Big")


async def test_an_h2c_upgrade_offer_on_a_post_is_no_websocket(client: Client, upstream: ScriptedUpstream) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    answers = [await client.embed("x", headers=offer) for _ in range(2)]
    assert [answer.cache for answer in answers] == ["MISS", "HIT"]
    assert not {"Upgrade", "HTTP2-Settings"} & set(upstream.calls[0].headers)
