"""Responses in parts: whole on the wire, never much at once, and made no sooner than they are written."""

from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from proxy.http.streamed import Streamed, in_pieces

PIECE_BYTES = 128 * 1024


class Written(Streamed):
    """Keeps what is written, in place of a connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.pieces: list[bytes] = []

    async def prepare(self, request: object) -> None:
        pass

    async def write(self, data: Any) -> None:
        self.pieces.append(bytes(data))

    async def write_eof(self, data: Any = b"") -> None:
        self.pieces.append(bytes(data))


@pytest.mark.parametrize(
    "sizes", [[], [1], [PIECE_BYTES], [PIECE_BYTES - 1, 1, 5], [3 * PIECE_BYTES, 7], [1000] * 1000]
)
async def test_nothing_is_lost_and_pieces_are_no_smaller_than_they_must_be(sizes: list[int]) -> None:
    parts = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    response = Written(parts, status=200, headers=CIMultiDict())
    await response.send(make_mocked_request("GET", "/"))
    *full, last = response.pieces
    assert b"".join(response.pieces) == b"".join(parts)
    assert all(len(piece) >= PIECE_BYTES for piece in full)
    assert all(len(piece) < PIECE_BYTES + max(sizes) for piece in full)
    assert len(last) < PIECE_BYTES


async def test_a_part_is_made_when_it_is_to_be_written() -> None:
    made = []

    def parts() -> Iterator[bytes]:
        for number in range(10):
            made.append(number)
            yield bytes(PIECE_BYTES)

    class Failing(Written):
        async def write(self, data: Any) -> None:
            if len(made) == 3:
                raise ConnectionResetError
            await super().write(data)

    response = Failing(parts(), status=200, headers=CIMultiDict())
    with pytest.raises(ConnectionResetError):
        await response.send(make_mocked_request("GET", "/"))
    assert made == [0, 1, 2]


def test_its_length_is_stated_if_it_is_known() -> None:
    assert Streamed([], status=201, reason="Made", headers=CIMultiDict(), length=5).content_length == 5
    response = Streamed([], status=201, reason="Made", headers=CIMultiDict({"X-A": "1"}))
    assert (response.content_length, response.status, response.reason) == (None, 201, "Made")
    assert response.headers["X-A"] == "1"


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_a_body_in_pieces_is_the_body(size: int) -> None:
    body = bytes(n % 251 for n in range(size))
    pieces = list(in_pieces(body))
    assert b"".join(pieces) == body
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
