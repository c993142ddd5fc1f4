"""Distinct items, asked of a proxy so that they fill its memory."""

import asyncio
from collections.abc import Iterator, Sequence

import orjson
from aiohttp import ClientSession

from bench.servers import Server
from bench.wrk import HEADERS, MODEL

_BATCH = 256


def body_of(numbers: Sequence[int], encoding: str) -> bytes:
    texts = [f"#{number}" for number in numbers]
    return orjson.dumps({"model": MODEL, "input": texts, "encoding_format": encoding})


async def fill(server: Server, numbers: range, encoding: str, *, connections: int, batch: int = _BATCH) -> None:
    """Ask for the items of these numbers."""
    batches = iter([numbers[start : start + batch] for start in range(0, len(numbers), batch)])
    async with ClientSession() as session:
        await asyncio.gather(*(_ask(session, server.url, batches, encoding) for _ in range(connections)))


async def _ask(session: ClientSession, url: str, batches: Iterator[range], encoding: str) -> None:
    for numbers in batches:  # shared with the other connections
        async with session.post(url, data=body_of(numbers, encoding), headers=HEADERS) as response:
            await response.read()
            assert response.status == 200, await response.text()
