"""Bodies are held within the memory for all of them."""

import gzip

import orjson
import pytest
from multidict import CIMultiDict

from proxy.errors import Overloaded
from proxy.http.bodies import BodyReader
from proxy.telemetry.metrics import Metrics
from proxy.tenant import Tenant

MIB = 1024 * 1024
GZIP = CIMultiDict({"Content-Encoding": "gzip"})
TOKENS = orjson.dumps({"input": [[n % 1000 for n in range(300)] for _ in range(300)]})  # as objects 18 times as large


def body_reader(*, max_held_bytes: int) -> BodyReader:
    return BodyReader(Metrics(), max_bytes=64 * MIB, max_held_bytes=max_held_bytes)


async def test_a_body_is_refused_before_it_is_joined_if_there_is_no_memory_to_parse_it() -> None:
    reader = body_reader(max_held_bytes=2 * MIB)
    reservation = reader.reserve(Tenant(b"one"))
    with pytest.raises(Overloaded):
        await reader.inflated(GZIP, gzip.compress(TOKENS), reservation)
    assert reservation.bytes == 0


async def test_a_body_takes_no_memory_for_parsing_until_it_is_parsed() -> None:
    reader = body_reader(max_held_bytes=64 * MIB)
    reservation = reader.reserve(Tenant(b"one"))
    body = await reader.inflated(GZIP, gzip.compress(TOKENS), reservation)
    assert body.content == TOKENS
    assert reservation.bytes == len(TOKENS)
