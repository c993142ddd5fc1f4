"""A response to a request that aiohttp has not parsed is, to the byte, what aiohttp would have written."""

import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from proxy.http.plain_response import AssembledResponse, parts_of
from proxy.http.streamed import Streamed

FIELDS = {"Content-Type": "application/json", "Date": "then", "Server": "s"}
Make = Callable[[], web.Response]


def with_cookie() -> web.Response:
    made = web.Response(body=b"x")
    made.set_cookie("session", "1")
    return made


def closing() -> web.Response:
    made = web.Response(body=b"x")
    made.force_close()
    return made


def chunked() -> web.Response:
    made = web.Response(body=b"x")
    made.enable_chunked_encoding()
    return made


def compressed() -> web.Response:
    made = web.Response(body=b"x")
    made.enable_compression()
    return made


ORDINARY: list[Make] = [
    lambda: web.Response(body=b'{"a":1}', headers={"Content-Type": "application/json", "X-A": "1"}),
    lambda: web.Response(body=b"", headers={"X-A": "ä"}),
    lambda: web.Response(body=b"x", status=201, reason="Made"),
    lambda: web.Response(body=b"x", headers=[("X-A", "1"), ("x-a", "2"), ("Server", "own"), ("Date", "never")]),
    lambda: web.json_response({"a": 1}),
    lambda: AssembledResponse([b"x", b"yz"], status=201, headers={"X-A": "1"}),
    lambda: AssembledResponse([], headers={"X-A": "1"}),
]


@pytest.mark.parametrize("make", ORDINARY)
async def test_it_is_what_aiohttp_writes(make: Make) -> None:
    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        return make()

    parts = parts_of(make())
    assert parts is not None
    await assert_is_written(b"".join(parts), handle)


async def assert_is_written(
    expected: bytes, handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
) -> None:
    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    written = await reader.readexactly(len(expected))
    writer.close()
    await writer.wait_closed()
    await runner.cleanup()
    date = re.compile(rb"Date: [^\r]*")
    assert date.sub(b"", written) == date.sub(b"", expected)


@pytest.mark.parametrize(
    "make",
    [
        with_cookie, closing, chunked, compressed,
        lambda: web.Response(body=b"x", status=200, headers={"Connection": "close"}),
        lambda: web.Response(body=b"x", status=404),
        lambda: web.Response(status=200),
        lambda: web.Response(body=b"x", headers={"X-A": "1\r\nX-B: 2"}),
        lambda: web.Response(body=b"x", headers={"X-A": "1\nX-B: 2"}),
        lambda: web.Response(body=b"x", headers={"X-A": "\0"}),
        lambda: Streamed([b"x"], status=200, headers=web.Response().headers),
    ],
)  # fmt: skip
def test_any_other_response_is_left_to_aiohttp(make: Callable[[], web.StreamResponse]) -> None:
    assert parts_of(make()) is None


def test_parts_are_written_as_their_joined_body_would_be() -> None:
    assembled = parts_of(AssembledResponse([b"[1,", b"2", b"]"], headers=FIELDS))
    joined = parts_of(web.Response(body=b"[1,2]", headers=FIELDS))
    assert assembled
    assert joined
    assert b"".join(assembled) == b"".join(joined)
    assert b"Content-Length: 5\r\n" in assembled[0]


def test_parts_are_not_copied() -> None:
    part = bytes(1000)
    written = parts_of(AssembledResponse([part], headers=FIELDS))
    assert written
    assert written[1] is part


def test_a_status_that_is_no_success_is_left_to_aiohttp() -> None:
    assert parts_of(AssembledResponse([b"x"], status=404, headers=FIELDS)) is None
