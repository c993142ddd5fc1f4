from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Overloaded
from proxy.http.pending_bytes import PendingBytes

LONG = 70_000


class Room:
    def __init__(self, size: int) -> None:
        self.size = size

    def take(self, size: int) -> None:
        if size > self.size:
            raise Overloaded("no room")
        self.size -= size

    def give_back(self, size: int) -> None:
        self.size += size


def test_a_head_waits_for_whatever_follows() -> None:
    pending = PendingBytes(b"head")
    assert not pending.add(b"x")
    assert pending.followed_by(b"x") == b"headx"
    assert pending.take() == b"head"


@given(st.binary(min_size=2, max_size=50), st.lists(st.integers(1, 49), min_size=1, unique=True))
def test_a_request_is_the_same_in_whatever_pieces_it_comes(sent: bytes, cuts: list[int]) -> None:
    ends = [*sorted({1, *(cut for cut in cuts if cut < len(sent))}), len(sent)]
    first, *rest = [sent[start:end] for start, end in pairwise([0, *ends])]
    pending = PendingBytes.beginning(first, len(sent), None)
    assert pending is not None
    assert [pending.add(piece) for piece in rest] == [True] * (len(rest) - 1) + [False]
    assert pending.followed_by(rest[-1]) == sent
    assert pending.take() == sent[: -len(rest[-1])]


def test_what_follows_a_request_is_not_added_to_it() -> None:
    pending = PendingBytes.beginning(b"ab", 4, None)
    assert pending is not None
    assert not pending.add(b"cdef")
    assert pending.take() == b"ab"


def test_a_long_request_takes_memory_until_it_is_taken() -> None:
    room = Room(LONG)
    pending = PendingBytes.beginning(b"ab", LONG, room)
    assert pending is not None
    assert room.size == 0
    assert PendingBytes.beginning(b"ab", LONG, room) is None
    assert room.size == 0
    assert pending.take() == b"ab"
    pending.take()
    assert room.size == LONG


@pytest.mark.parametrize("size", [3, 64 * 1024])
def test_a_short_request_takes_none(size: int) -> None:
    assert PendingBytes.beginning(b"ab", size, Room(0)) is not None
