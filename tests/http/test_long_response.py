"""Responses that are written in turns. What else may happen meanwhile: `tests/embeddings/test_known_head.py`."""

from collections.abc import Iterable
from itertools import chain

import pytest
from aiohttp import web
from multidict import CIMultiDict

from proxy.http.long_response import MAX_LONG_BYTES, LongResponse, long_response_of
from proxy.http.plain_response import AssembledResponse
from proxy.http.streamed import Streamed
from tests.http.test_plain_response import assert_is_written


def streamed(parts: Iterable[bytes] = (b"xy", b"z"), *, status: int = 200, length: int | None = 3) -> Streamed:
    fields = CIMultiDict({"X-A": "1", "Content-Type": "application/json"})
    return Streamed(parts, status=status, headers=fields, length=length, part_bytes=1)


async def test_a_long_response_is_what_aiohttp_writes() -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = streamed()
        await response.send(request)
        return response

    made = long_response_of(streamed())
    assert made is not None
    await assert_is_written(b"".join([*made.first, *chain.from_iterable(made.rest)]), handle)


@pytest.mark.parametrize(
    "response",
    [
        streamed(status=404),
        streamed(length=None),
        streamed(length=MAX_LONG_BYTES + 1),
        Streamed([b"x"], status=200, headers=CIMultiDict(), length=1),
        AssembledResponse([b"x"], headers={}),
    ],
)
def test_a_long_response_is_a_success_of_limited_length_in_many_similar_parts(response: web.StreamResponse) -> None:
    assert long_response_of(response) is None


def test_a_turn_writes_a_limited_number_of_bytes() -> None:
    made = LongResponse.of([], [bytes(100_000)] * 8, part_bytes=100_000)
    assert [sum(map(len, some)) for some in made.rest] == [300_000, 300_000, 200_000]
