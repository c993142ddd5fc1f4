from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.capacity import SharedCapacity
from proxy.http.pending_request import PendingRequest
from proxy.reservation import MemoryReservation
from proxy.tenant import Tenant

LONG = 70_000


def room(size: int) -> MemoryReservation:
    return MemoryReservation(SharedCapacity(size, "bytes", unverified_limit=0), Tenant(b"one"))


def test_a_head_waits_for_whatever_follows() -> None:
    pending = PendingRequest(b"head")
    assert not pending.add(b"x")
    assert pending.followed_by(b"x") == b"headx"
    assert pending.take() == b"head"


@given(st.binary(min_size=2, max_size=50), st.lists(st.integers(1, 49), min_size=1, unique=True))
def test_a_request_is_the_same_in_whatever_pieces_it_comes(sent: bytes, cuts: list[int]) -> None:
    ends = [*sorted({1, *(cut for cut in cuts if cut < len(sent))}), len(sent)]
    first, *rest = [sent[start:end] for start, end in pairwise([0, *ends])]
    pending = PendingRequest.beginning(first, len(sent), None)
    assert pending is not None
    assert [pending.add(piece) for piece in rest] == [True] * (len(rest) - 1) + [False]
    assert pending.followed_by(rest[-1]) == sent
    assert pending.take() == sent[: -len(rest[-1])]


def test_what_follows_a_request_is_not_added_to_it() -> None:
    pending = PendingRequest.beginning(b"ab", 4, None)
    assert pending is not None
    assert not pending.add(b"cdef")
    assert pending.take() == b"ab"


def test_a_long_request_takes_memory_until_it_is_taken() -> None:
    reservation = room(LONG)
    pending = PendingRequest.beginning(b"ab", LONG, reservation)
    assert pending is not None
    assert reservation.bytes == LONG
    assert PendingRequest.beginning(b"ab", LONG, reservation) is None
    assert reservation.bytes == LONG
    assert pending.take() == b"ab"
    pending.take()
    assert reservation.bytes == 0


@pytest.mark.parametrize("size", [3, 64 * 1024])
def test_a_short_request_takes_none(size: int) -> None:
    assert PendingRequest.beginning(b"ab", size, room(0)) is not None
