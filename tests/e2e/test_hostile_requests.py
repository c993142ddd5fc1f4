"""Requests that two servers might read in two ways.

Whatever comes in, the upstream sees one well-framed request or none, and the next request gets its own answer.
"""

import asyncio
from typing import NamedTuple

import orjson
import pytest
from aiohttp import web

from tests.support.client import Client
from tests.support.raw_requests import Framed, connected, echo, get, post, read_framed
from tests.support.scripted import ScriptedUpstream

CHUNKED = b"Transfer-Encoding: chunked"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /v1/good HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def chunks(body: bytes) -> bytes:
    return post(CHUNKED, body=body)


# The proxy answers 4xx, and the upstream sees nothing.
REFUSED = {
    "length and coding": post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    "coding and length": post(CHUNKED, b"Content-Length: 4", body=b"0\r\n\r\n" + SMUGGLED),
    "coding and length, 1.0": post(CHUNKED, b"Content-Length: 5", version=b"HTTP/1.0"),
    "coding twice": post(CHUNKED, CHUNKED, body=HELLO),
    "coding twice, differing": post(CHUNKED, b"Transfer-Encoding: identity", body=HELLO),
    "coding that ends in another": post(b"Transfer-Encoding: chunked, identity", body=HELLO),
    "coding identity": post(b"Transfer-Encoding: identity", b"Connection: close", body=HELLO),
    "coding identity, chunked": post(b"Transfer-Encoding: identity, chunked", body=HELLO),
    "coding gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=HELLO),
    "coding xchunked": post(b"Transfer-Encoding: xchunked", body=HELLO),
    "coding in quotes": post(b'Transfer-Encoding: "chunked"', body=HELLO),
    "coding and space": post(b"Transfer-Encoding: chunked \t", body=HELLO),
    "coding after a vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=HELLO),
    "coding, space before the colon": post(b"Transfer-Encoding : chunked", body=HELLO),
    "coding on a folded line": post(b"Transfer-Encoding:\r\n chunked", body=HELLO),
    "coding without a value": post(b"Transfer-Encoding:", b"Content-Length: 5"),
    "length twice, differing": post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"),
    "length twice, equal": post(b"Content-Length: 5", b"Content-Length: 5"),
    "length as a list": post(b"Content-Length: 5, 5"),
    "length negative": post(b"Content-Length: -5"),
    "length with a plus": post(b"Content-Length: +5"),
    "length in hex": post(b"Content-Length: 0x5"),
    "length with an underscore": post(b"Content-Length: 5_0"),
    "length in other digits": post(b"Content-Length: \xd9\xa5"),
    "length empty": post(b"Content-Length:"),
    "length over 64 bits": post(b"Content-Length: 18446744073709551621"),
    "length on a folded line": post(b"Content-Length: 5\r\n 0"),
    "folded field": get(b"X-A: 1\r\n folded"),
    "folded first field": get(b" X-A: 1", host=b""),
    "space before the colon": get(b"X-A : 1"),
    "bare LF": b"GET /v1/echo HTTP/1.1\nHost: x\n\n",
    "bare LF between fields": get(b"X-A: 1\nX-B: 2"),
    "bare CR in a value": get(b"X-A: 1\rX-B: 2"),
    "NUL in a name": get(b"X\x00A: 1"),
    "NUL in a value": get(b"X-A: 1\x002"),
    "control character in a name": get(b"X\x01A: 1"),
    "control character in a value": get(b"X-A: 1\x012"),
    "name beyond ASCII": get("Ä: 1".encode()),
    "field without a name": get(b": 1"),
    "field without a colon": get(b"nothing"),
    "chunk size with a plus": chunks(b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk size negative": chunks(b"-5\r\nhello\r\n0\r\n\r\n"),
    "chunk size 0x5": chunks(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size and space": chunks(b"5 \r\nhello\r\n0\r\n\r\n"),
    "chunk size empty": chunks(b"\r\nhello\r\n0\r\n\r\n"),
    "chunk size over 64 bits": chunks(b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "chunk longer than its size": chunks(b"3\r\nhello\r\n0\r\n\r\n"),
    "chunk with bare LF": chunks(b"5\nhello\n0\n\n"),
    "chunk extension with bare LF": chunks(b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "trailer with a length": chunks(b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n"),
    "trailer that is none": chunks(b"5\r\nhello\r\n0\r\nnone\r\n\r\n"),
    "HTTP/0.9": b"GET /v1/echo\r\n\r\n",
    "HTTP/2.0": get(line=b"GET /v1/echo HTTP/2.0"),
    "HTTP/3.7": get(line=b"GET /v1/echo HTTP/3.7"),
    "HTTP/1.10": get(line=b"GET /v1/echo HTTP/1.10"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n",
    "absolute form": get(line=b"GET http://evil.example/v1/echo HTTP/1.1"),
    "authority form": get(line=b"CONNECT evil.example:443 HTTP/1.1"),
    "TRACE": get(line=b"TRACE /v1/echo HTTP/1.1"),
    "CONNECT to a path": get(line=b"CONNECT /v1/echo HTTP/1.1"),
    "CONNECT with a body": get(b"Content-Length: 5", line=b"CONNECT /v1/embeddings HTTP/1.1", body=b"hello"),
    "asterisk form": get(line=b"OPTIONS * HTTP/1.1"),
    "target @evil": get(line=b"GET @evil.example/v1/echo HTTP/1.1"),
    "target without a slash": get(line=b"GET :80/v1/echo HTTP/1.1"),
    "space in the target": get(line=b"GET /v1/ec ho HTTP/1.1"),
    "tab in the target": get(line=b"GET /v1/ec\tho HTTP/1.1"),
    "NUL in the target": get(line=b"GET /v1/\x00 HTTP/1.1"),
    "target beyond ASCII": get(line="GET /v1/ä HTTP/1.1".encode()),
    "long target": get(line=b"GET /v1/" + b"a" * 70_000 + b" HTTP/1.1"),
    "long name": get(b"X" * 70_000 + b": 1"),
    "long value": get(b"X-A: " + b"a" * 70_000),
    "10,000 fields": get(*(b"X-%d: 1" % n for n in range(10_000))),
    "two hosts": get(b"Host: y"),
    "no host": get(host=b""),
    "unknown method": get(line=b"FROBNICATE /v1/echo HTTP/1.1"),
    "method in lower case": get(line=b"get /v1/echo HTTP/1.1"),
    "method with a sign": get(line=b"G@T /v1/echo HTTP/1.1"),
    "space before the method": b" " + get(),
}  # fmt: skip


class Seen(NamedTuple):
    method: str
    target: str
    body: bytes


GOOD_SEEN, ECHO, HELLO_SEEN = (
    Seen("GET", "/v1/good", b""), Seen("GET", "/v1/echo", b""), Seen("POST", "/v1/echo", b"hello")
)  # fmt: skip
# The upstream sees just this one request.
FORWARDED = {
    "coding in upper case": (post(b"Transfer-Encoding: CHUNKED", body=HELLO), HELLO_SEEN),
    "coding after a tab": (post(b"Transfer-Encoding:\tchunked", body=HELLO), HELLO_SEEN),
    "coding on 1.0": (post(CHUNKED, body=HELLO, version=b"HTTP/1.0"), HELLO_SEEN),
    "coding named by Connection": (post(CHUNKED, b"Connection: Transfer-Encoding, Host", body=HELLO), HELLO_SEEN),
    "length named by Connection": (post(b"Content-Length: 5", b"Connection: Content-Length"), HELLO_SEEN),
    "length with zeros": (post(b"Content-Length: 005"), HELLO_SEEN),
    "length of a GET": (get(b"Content-Length: 5", body=b"hello"), Seen("GET", "/v1/echo", b"hello")),
    "chunk extension": (chunks(b'5;a="b;c"\r\nhello\r\n0\r\n\r\n'), HELLO_SEEN),
    "chunk size with many zeros": (chunks(b"0" * 1000 + b"5\r\nhello\r\n0\r\n\r\n"), HELLO_SEEN),
    "trailer": (chunks(b"5\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n"), HELLO_SEEN),
    "no host, 1.0": (get(host=b"", line=b"GET /v1/echo HTTP/1.0"), ECHO),
    "empty host": (get(host=b"Host:"), ECHO),
    "host that is none": (get(host=b"Host: a b/c@d"), ECHO),
    "target //evil": (get(line=b"GET //evil.example/v1 HTTP/1.1"), Seen("GET", "//evil.example/v1", b"")),
    "target /@evil": (get(line=b"GET /@evil.example/v1 HTTP/1.1"), Seen("GET", "/@evil.example/v1", b"")),
    "target with dots": (get(line=b"GET /v1/../../x HTTP/1.1"), Seen("GET", "/v1/../../x", b"")),
    "line break in the target, encoded": (get(line=b"GET /v1/%0d%0aX:1 HTTP/1.1"), Seen("GET", "/v1/%0d%0aX:1", b"")),
    "fragment": (get(line=b"GET /v1/echo#part HTTP/1.1"), ECHO),
    "two spaces before the target": (get(line=b"GET  /v1/echo HTTP/1.1"), ECHO),
    "empty lines first": (b"\r\n\r\n" + get(), ECHO),
    "other expectation": (post(b"Expect: the-unexpected", b"Content-Length: 5"), HELLO_SEEN),
    "upgrade to h2c": (get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), ECHO),
    "upgrade to h2c with a body": (post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 5"), HELLO_SEEN),
    "WebSocket that is refused": (get(b"Connection: Upgrade", b"Upgrade: websocket"), ECHO),
    "WebSocket by POST": (post(b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 5"), HELLO_SEEN),
    "HEAD with a body": (
        get(b"Content-Length: 5", line=b"HEAD /v1/echo HTTP/1.1", body=b"hello"), Seen("HEAD", "/v1/echo", b"hello")
    ),
    "PURGE": (get(line=b"PURGE /v1/echo HTTP/1.1"), Seen("PURGE", "/v1/echo", b"")),
}  # fmt: skip


async def read_last(reader: asyncio.StreamReader) -> None:
    answer = await read_framed(reader)
    assert (answer.status, orjson.loads(answer.body)) == (200, ["GET", "/v1/good", ""])
    assert await rest(reader) == b""


async def rest(reader: asyncio.StreamReader) -> bytes:
    return await reader.read()


async def ask_again(client: Client) -> None:
    async with connected(client) as (reader, writer):
        writer.write(LAST)
        await read_last(reader)


async def exchange(client: Client, request: bytes, *, is_head: bool = False) -> Framed:
    """Send it, then a good request if the connection stays open, and a good request on another connection."""
    async with connected(client) as (reader, writer):
        writer.write(request)
        answer = await read_framed(reader, is_head=is_head)
        if answer.stays:
            writer.write(LAST)
            await read_last(reader)
        else:
            assert await rest(reader) == b""
    await ask_again(client)
    return answer


def seen(upstream: ScriptedUpstream) -> list[Seen]:
    return [Seen(call.method, call.target, call.body) for call in upstream.calls]


@pytest.fixture
async def echoing(client: Client, upstream: ScriptedUpstream) -> Client:
    upstream.reply = echo
    return client


@pytest.mark.parametrize("name", REFUSED)
async def test_ambiguous_request_is_refused(echoing: Client, upstream: ScriptedUpstream, name: str) -> None:
    answer = await exchange(echoing, REFUSED[name])
    assert 400 <= answer.status < 500
    assert {*seen(upstream)} == {GOOD_SEEN}


@pytest.mark.parametrize("name", FORWARDED)
async def test_unusual_request_is_forwarded_as_one_request(
    echoing: Client, upstream: ScriptedUpstream, name: str
) -> None:
    request, expected = FORWARDED[name]
    answer = await exchange(echoing, request, is_head=expected.method == "HEAD")
    assert answer.status == 200
    assert seen(upstream)[0] == expected
    assert {*seen(upstream)[1:]} == {GOOD_SEEN}
    sent = upstream.calls[0].headers
    assert sent.getall("Host") == [upstream.base_url.removeprefix("http://").removesuffix("/v1")]
    assert len(sent.getall("Content-Length", [])) + len(sent.getall("Transfer-Encoding", [])) <= 1
    assert not {"Expect", "HTTP2-Settings", "Trailer", "X-Trailer"} & set(sent)


@pytest.mark.parametrize("name", [*REFUSED, *FORWARDED])
async def test_pipelined_request_is_served_or_the_connection_closed(
    echoing: Client, upstream: ScriptedUpstream, name: str
) -> None:
    request, expected = FORWARDED.get(name) or (REFUSED[name], None)
    async with connected(echoing) as (reader, writer):
        writer.write(request + LAST)
        answer = await read_framed(reader, is_head=expected is not None and expected.method == "HEAD")
        if answer.stays:
            await read_last(reader)
        else:
            assert await rest(reader) == b""
    # What is to be the last request of its connection is refused if more is behind it.
    assert seen(upstream) in ([], *([[GOOD_SEEN]] if expected is None else [[expected], [expected, GOOD_SEEN]]))
    await ask_again(echoing)


async def test_pipelined_requests_are_answered_in_order(echoing: Client, upstream: ScriptedUpstream) -> None:
    async with connected(echoing) as (reader, writer):
        writer.write(post(b"Content-Length: 5") + chunks(HELLO) + get(b"Content-Length: 5", body=b"GET /") + LAST)
        for expected in (["POST", "/v1/echo", "hello"], ["POST", "/v1/echo", "hello"], ["GET", "/v1/echo", "GET /"]):
            assert orjson.loads((await read_framed(reader)).body) == expected
        await read_last(reader)
    assert len(upstream.calls) == 4


@pytest.mark.parametrize("request_", [post(b"Content-Length: 5", body=b"hello, and more"), get(body=b"xyz\r\n\r\n")])
async def test_bytes_after_a_body_are_not_part_of_it(
    echoing: Client, upstream: ScriptedUpstream, request_: bytes
) -> None:
    async with connected(echoing) as (reader, writer):
        writer.write(request_)
        while (await read_framed(reader)).stays:
            pass
        assert await rest(reader) == b""
    assert {call.body for call in upstream.calls} <= {b"hello", b""}
    await ask_again(echoing)


@pytest.mark.parametrize(
    "request_",
    [
        chunks(b"5\r\nhello\r\n"),
        chunks(b"5\r\nhel"),
        post(b"Content-Length: 6"),
        post(b"Content-Length: 99999999999999"),
        post(CHUNKED, body=b"5\r\nhello\r\n", path=b"/v1/embeddings"),
        post(b"Content-Length: 6", path=b"/v1/embeddings"),
        b"GET /v1/echo\r\n",
        b"GET /v1/echo HTTP/1.1\r\nHost: x\r\n",
    ],
)
async def test_incomplete_request_is_not_forwarded(
    echoing: Client, upstream: ScriptedUpstream, request_: bytes
) -> None:
    async with connected(echoing) as (reader, writer):
        writer.write(request_)
        writer.write_eof()
        await rest(reader)
    assert not upstream.calls
    await ask_again(echoing)


async def test_incomplete_request_after_an_upgrade_is_not_forwarded(
    echoing: Client, upstream: ScriptedUpstream
) -> None:
    first = get(b"Connection: Upgrade", b"Upgrade: h2c") + post(b"Content-Length: %d" % len(SMUGGLED), body=b"")
    async with connected(echoing) as (reader, writer):
        writer.write(first)
        assert (await read_framed(reader)).status == 200
        writer.write(SMUGGLED)
        assert await rest(reader) == b""
    assert seen(upstream) == [ECHO]


async def test_invalid_websocket_handshake_is_a_502(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda _: web.Response(
        status=101, headers={"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": "not this"}
    )
    handshake = get(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13")
    async with connected(client) as (reader, writer):
        writer.write(handshake)
        assert (await read_framed(reader)).status == 502


async def test_too_large_content_length_is_refused_before_the_body(echoing: Client, upstream: ScriptedUpstream) -> None:
    fields = (b"Content-Length: 99999999999999", b"Expect: 100-continue")
    async with connected(echoing) as (reader, writer):
        writer.write(post(*fields, body=b"", path=b"/v1/embeddings"))
        assert (await read_framed(reader)).status == 413
    assert not upstream.calls
