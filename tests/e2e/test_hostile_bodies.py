"""Bodies that swell, and headers that are not to travel."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from aiohttp import web

from proxy.config.settings import MIB
from tests.conftest import StartProxy
from tests.support.client import Client, raw
from tests.support.raw_requests import connected, post, read_framed
from tests.support.redis_server import free_port
from tests.support.scripted import Call, ScriptedUpstream

LIMIT = 256 * 1024
EMBED = b'{"model":"m","input":"x"}'
GZIPPED = gzip.compress(EMBED, mtime=0)  # without the time, which would be in the names of the tests


def swollen(size: int) -> bytes:
    """A request of so many spaces, about a thousandth of it as gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    parts = [packer.compress(EMBED)]
    parts += [packer.compress(b" " * MIB) for _ in range(size // MIB)]
    return b"".join([*parts, packer.flush()])


async def test_decompression_bomb_is_not_inflated(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(max_body_bytes=LIMIT)
    bomb = swollen(100 * MIB)
    assert len(bomb) < LIMIT
    tracemalloc.start()
    try:
        answer = await client.post(bomb, Content_Encoding="gzip")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status, answer.json["error"]["code"]) == (413, "body_too_large")
    assert peak < LIMIT + 4 * MIB
    assert not upstream.calls
    assert (await client.embed("x")).cache == "MISS"


async def test_decompression_bombs_count_as_held_memory(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(max_held_bytes=LIMIT)
    answer = await client.post(swollen(MIB), Content_Encoding="gzip")
    assert (answer.status, answer.json["error"]["code"]) == (503, "overloaded")
    assert not upstream.calls
    assert await client.metric("embedding_proxy_held_bytes") == 0


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate"])
async def test_compressed_body_is_decoded(client: Client, upstream: ScriptedUpstream, coding: str) -> None:
    packed = zlib.compress(EMBED) if coding == "deflate" else gzip.compress(EMBED)
    assert (await client.post(packed, Content_Encoding=coding)).cache == "MISS"
    assert (await client.post(EMBED)).cache == "HIT"
    assert upstream.calls[0].json["input"] == "x"
    assert "Content-Encoding" not in upstream.calls[0].headers


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (gzip.compress(GZIPPED, mtime=0), "gzip, gzip"),
        (GZIPPED[:-4], "gzip"),
        (GZIPPED + b"more", "gzip"),
        (GZIPPED * 2, "gzip"),
        (GZIPPED[:10] + b"\xff" * 20, "gzip"),
        (b"garbage", "gzip"),
        (b"", "gzip"),
        (EMBED, "gzip"),
        (zlib.compress(EMBED)[2:-4], "deflate"),  # the raw stream that some send
        (EMBED, "br"),
        (EMBED, "identity"),
        (EMBED, ""),
    ],
)
async def test_undecodable_body_is_relayed_unchanged(
    client: Client, upstream: ScriptedUpstream, body: bytes, coding: str
) -> None:
    upstream.reply = lambda _: web.Response(status=415)
    answer = await client.post(body, Content_Encoding=coding)
    assert (answer.status, answer.cache) == (415, "BYPASS")
    assert [(call.body, call.headers["Content-Encoding"]) for call in upstream.calls] == [(body, coding)]


async def test_two_content_encoding_fields_are_relayed_unchanged(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda _: web.Response(status=415)
    packed = gzip.compress(EMBED)
    fields = (b"Content-Encoding: gzip", b"Content-Encoding: gzip", b"Content-Length: %d" % len(packed))
    async with connected(client) as (reader, writer):
        writer.write(post(*fields, b"Content-Type: application/json", body=packed, path=b"/v1/embeddings"))
        answer = await read_framed(reader)
    assert (answer.status, answer.fields["x-cache"]) == (415, "BYPASS")
    assert upstream.calls[0].headers.getall("Content-Encoding") == ["gzip", "gzip"]
    assert upstream.calls[0].body == packed


async def test_nested_gzip_is_not_parsed(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda _: web.Response(status=400)
    answer = await client.post(gzip.compress(gzip.compress(EMBED)), Content_Encoding="gzip")
    assert 400 <= answer.status < 500


HOPS = (
    b"Connection: X-One, close",
    b"Connection: x-TWO ,, X-Three",
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: keep-alive",
    b"Proxy-Authorization: Basic x",
    b"TE: trailers",
    b"Trailer: X-Trailer",
    b"X-One: 1",
    b"X-Two: 2",
    b"X-Three: 3",
)


@pytest.mark.parametrize("path", ["/v1/echo", "/v1/embeddings"])
async def test_hop_by_hop_fields_are_not_forwarded(client: Client, upstream: ScriptedUpstream, path: str) -> None:
    def reply(call: Call) -> web.Response:
        response = upstream.embed(call)
        for name, value in (
            ("Connection", "X-One, Set-Cookie"),
            ("Connection", "x-two"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Authenticate", "Basic"),
            ("Trailer", "X-Trailer"),
            ("Upgrade", "h2c"),
            ("X-One", "1"),
            ("X-Two", "2"),
            ("Set-Cookie", "a=b"),
            ("X-End", "to end"),
        ):
            response.headers.add(name, value)
        return response

    upstream.reply = reply
    length = b"Content-Length: %d" % len(EMBED)
    answer = await raw(client, post(*HOPS, length, b"Content-Type: application/json", body=EMBED, path=path.encode()))
    assert answer.startswith(b"HTTP/1.1 200")
    sent = {name.lower() for name in upstream.calls[0].headers}
    assert sent <= {"host", "content-length", "content-type", "accept-encoding"}
    names = {line.split(b":")[0].lower() for line in answer.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]}
    assert b"x-end" in names
    assert not names & {b"keep-alive", b"proxy-authenticate", b"trailer", b"upgrade", b"x-one", b"x-two", b"set-cookie"}


@pytest.mark.parametrize("path", ["/v1/echo", "/v1/embeddings"])
async def test_forwarded_fields_are_neither_added_nor_trusted(
    client: Client, upstream: ScriptedUpstream, path: str
) -> None:
    names = {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"}
    await client.post({"model": "m", "input": "x"}, target=path)
    assert not names & {name.lower() for name in upstream.calls[0].headers}
    given = {"X-Forwarded-For": "10.0.0.1", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    await client.post({"model": "m", "input": "y"}, target=path, **given)
    sent = upstream.calls[1].headers
    assert {name: sent[name] for name in given} == given
    assert sent["Host"] == upstream.calls[0].headers["Host"]


async def test_forwarded_for_does_not_change_the_scope(client: Client) -> None:
    await client.embed("x")
    assert (await client.embed("x", headers={"X-Forwarded-For": "10.0.0.1"})).cache == "HIT"
    assert (await client.post({"model": "m", "input": "x"}, key="Bearer other", X_Forwarded_For="1")).cache == "MISS"


async def test_cookie_of_a_shared_call_reaches_no_client(client: Client, upstream: ScriptedUpstream) -> None:
    held = asyncio.Event()

    async def reply(call: Call) -> web.Response:
        await held.wait()
        response = upstream.embed(call)
        response.set_cookie("session", "1")
        return response

    upstream.reply = reply
    first = asyncio.create_task(client.embed("first"))
    while not upstream.calls:
        await asyncio.sleep(0)
    others = [asyncio.create_task(client.embed(text)) for text in ("a", "b")]
    try:
        while await client.metric("embedding_proxy_upstream_queued_items") < 3:
            await asyncio.sleep(0)
    finally:
        held.set()
    answers = await asyncio.gather(first, *others)
    shared = any(len(call.items) > 1 for call in upstream.calls)
    assert ["Set-Cookie" in answer.headers for answer in answers] == [True, not shared, not shared]


async def test_redirect_of_the_embeddings_route_is_not_followed(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda _: web.Response(status=307, headers={"Location": f"{upstream.base_url}/elsewhere"})
    answer = await client.post(EMBED)
    assert (answer.status, answer.headers["Location"]) == (307, "/v1/elsewhere")
    assert {call.target for call in upstream.calls} == {"/v1/embeddings"}


@pytest.mark.parametrize("case", [str.upper, str.lower])
async def test_environment_proxies_are_not_used(
    start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, case: Callable[[str], str]
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(case(name), f"http://127.0.0.1:{free_port()}")
    client = await start_proxy()
    assert (await client.embed("x")).status == 200
    assert (await client.send("GET", "/v1/models")).status != 502
