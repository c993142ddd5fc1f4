"""Requests as bytes, and their responses."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiohttp import web

from tests.support.client import Client
from tests.support.scripted import Call


def get(*fields: bytes, line: bytes = b"GET /v1/echo HTTP/1.1", host: bytes = b"Host: x", body: bytes = b"") -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", b""]) + body


def post(*fields: bytes, body: bytes = b"hello", path: bytes = b"/v1/echo", version: bytes = b"HTTP/1.1") -> bytes:
    return get(*fields, line=b"POST " + path + b" " + version, body=body)


class Framed(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes
    stays: bool  # the connection


async def read_framed(reader: asyncio.StreamReader, *, is_head: bool = False) -> Framed:
    """One answer, read as strictly as its framing can be."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    match = re.fullmatch(r"HTTP/(\d\.\d) (\d{3}) .*", line)
    assert match is not None
    pairs = [field.split(": ", 1) for field in lines]
    fields = {name.lower(): value for name, value in pairs}
    assert len(fields) == len(pairs)
    body = b"" if is_head else await reader.readexactly(int(fields["content-length"]))
    stays = fields.get("connection", "keep-alive" if match[1] == "1.1" else "close") == "keep-alive"
    return Framed(int(match[2]), fields, body, stays)


@asynccontextmanager
async def connected(client: Client) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = client.origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


def echo(call: Call) -> web.Response:
    return web.json_response([call.method, call.target, call.body.decode()])
