"""Bodies that are relayed because they can't be read, and compressed ones that can."""

import gzip
import zlib
from collections.abc import Callable

import orjson
import pytest
from aiohttp import web

from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.scripted import Call, ScriptedUpstream, error_reply


@pytest.mark.parametrize(
    ("reason", "body"),
    [
        ("not-json", b"{"),
        ("stream", b'{"model": "m",  "input": ["x"], "stream": true}'),
        ("upstream-cache", b'{"model": "m", "input": ["x"], "cache": {"no-cache": true}}'),
        ("duplicate-key", b'{"model": "a", "model": "b", "input": "x"}'),
        ("remote-media", b'{"model": "m", "input": ["x", "https://e/y.png"], "modality": ["text", "image"]}'),
    ],
)
async def test_what_is_uncertain_is_relayed_both_ways_to_the_byte(
    client: Client, upstream: ScriptedUpstream, reason: str, body: bytes
) -> None:
    await client.embed("x")
    upstream.reply = error_reply(200, b'{"whatever":  1}', x_custom="1")
    for _ in range(2):
        answer = await client.post(body)
        assert upstream.calls[-1].body == body
        assert (answer.body, answer.cache, answer.headers["x-custom"]) == (b'{"whatever":  1}', "BYPASS", "1")
        assert answer.headers["Cache-Status"] == f"embedding-proxy; fwd=bypass; detail={reason}"
    assert await client.metric("embedding_proxy_bypasses_total", reason=reason) == 2


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/jsonl", "application/json; charset=iso-8859-1"],
)
async def test_a_body_not_declared_as_json_is_bypassed(client: Client, content_type: str) -> None:
    answer = await client.post({"model": "m", "input": "x"}, Content_Type=content_type)
    assert answer.cache == "BYPASS"


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", 'application/json;charset="UTF8"']
)
async def test_json_by_any_other_spelling_is_json(client: Client, content_type: str) -> None:
    assert (await client.post({"model": "m", "input": "x"}, Content_Type=content_type)).cache == "MISS"


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_compressed_request_is_one_like_any_other(
    client: Client, upstream: ScriptedUpstream, coding: str, compress: Callable[[bytes], bytes]
) -> None:
    plain = orjson.dumps({"model": "m", "input": "x"})
    miss, hit = [await client.post(compress(plain), Content_Encoding=coding) for _ in range(2)]
    assert (miss.cache, hit.cache, miss.embeddings) == ("MISS", "HIT", hit.embeddings)
    assert (await client.embed("x")).cache == "HIT"
    (call,) = upstream.calls
    assert (call.body, "Content-Encoding" in call.headers) == (plain, False)


# Without the time, which would be in the names of the tests.
GZIPPED = gzip.compress(b'{"model":"m","input":"x"}', mtime=0)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"not gzip at all"),
        ("gzip", GZIPPED[:-4]),
        ("gzip", GZIPPED + b"more"),
        ("br", b'{"model":"m","input":"x"}'),
        ("gzip, gzip", gzip.compress(GZIPPED, mtime=0)),
    ],
)
async def test_what_can_not_be_inflated_is_relayed_as_it_is(
    client: Client, upstream: ScriptedUpstream, coding: str, body: bytes
) -> None:
    upstream.reply = error_reply(400, b"{}")
    assert (await client.post(body, Content_Encoding=coding)).cache == "BYPASS"
    assert (upstream.calls[-1].body, upstream.calls[-1].headers["Content-Encoding"]) == (body, coding)


async def test_what_could_not_be_inflated_holds_no_more_than_itself(client: Client, upstream: ScriptedUpstream) -> None:
    held: list[float] = []

    async def reply(_: Call) -> web.StreamResponse:
        held.append(await client.metric("embedding_proxy_held_request_bytes"))
        return web.Response(status=400)

    upstream.reply = reply
    await client.post(b"not gzip at all", Content_Encoding="gzip")
    assert held == [len(b"not gzip at all")]


async def test_a_body_that_grows_beyond_bounds_is_refused(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(max_body_bytes=100_000)
    bomb = gzip.compress(b'{"model":"m","input":"' + b"a" * 50_000_000 + b'"}')
    assert len(bomb) < 100_000
    assert (await client.post(bomb, Content_Encoding="gzip")).status == 413
    assert not upstream.calls
