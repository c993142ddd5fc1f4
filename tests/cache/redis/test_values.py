"""The values of an MGET are those that hiredis finds in its reply, and the bounds are those of the guard."""

from collections.abc import Sequence
from itertools import pairwise

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.redis.resp import UnexpectedReply
from proxy.cache.redis.values import ValuesReader

VALUE_LISTS = st.lists(
    st.one_of(st.none(), st.binary(max_size=40), st.sampled_from([b"\r\n", b"$-1\r\n", b"*1\r\n$1\r\n", b"x" * 300])),
    min_size=1,
    max_size=8,
)


def reply_of(values: Sequence[bytes | None]) -> bytes:
    texts = [b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value) for value in values]
    return b"*%d\r\n" % len(values) + b"".join(texts)


def in_pieces(reply: bytes, cuts: Sequence[int]) -> list[bytes]:
    ends = sorted({cut % (len(reply) + 1) for cut in cuts} | {0, len(reply)})
    return [reply[start:end] for start, end in pairwise(ends)]


def feed(reader: ValuesReader, pieces: Sequence[bytes]) -> bytes | None:
    """What the reader leaves to others."""
    for number, piece in enumerate(pieces):
        assert not reader.is_complete
        if (other := reader.feed(piece)) is not None:
            return other + b"".join(pieces[number + 1 :])
    return None


@given(VALUE_LISTS, st.lists(st.integers(0, 10**6), max_size=8))
def test_all_values_are_found_however_the_reply_is_split(values: list[bytes | None], cuts: list[int]) -> None:
    reader = ValuesReader(len(values))
    assert feed(reader, in_pieces(reply_of(values), cuts)) is None
    assert reader.is_complete
    assert not reader.has_more
    assert reader.values == values


@given(VALUE_LISTS)
def test_a_reply_may_arrive_byte_by_byte(values: list[bytes | None]) -> None:
    reply = reply_of(values)
    reader = ValuesReader(len(values))
    assert feed(reader, [reply[at : at + 1] for at in range(len(reply))]) is None
    assert reader.values == values


@pytest.mark.parametrize("reply", [b"-LOADING\r\n", b"*-1\r\n", b"+OK\r\n", b"*22\r\n", b"*1\r\n", b"\r\n", b":1\r\n"])
def test_any_other_reply_is_left_to_others_with_all_of_its_bytes(reply: bytes) -> None:
    assert ValuesReader(2).feed(reply) == reply
    assert feed(ValuesReader(2), [reply[at : at + 1] for at in range(len(reply))]) == reply


@pytest.mark.parametrize(
    "wrong",
    [
        b":1\r\n", b"*1\r\n", b"+OK\r\n", b"-ERR\r\n", b"\r\n", b"$\r\n", b"$-2\r\n", b"$+1\r\n", b"$ 1\r\n",
        b"$1_0\r\n", b"$x\r\n", b"$8388609\r\n", b"$" + b"9" * 40, b"x" * 40, b"$%s1\r\n" % (b"0" * 31),
    ],
)  # fmt: skip
@pytest.mark.parametrize("step", [1, 5, 100])
def test_what_is_no_string_is_refused(wrong: bytes, step: int) -> None:
    reply = b"*3\r\n$5\r\nvalue\r\n" + wrong
    reader = ValuesReader(3)
    with pytest.raises(UnexpectedReply):
        feed(reader, [reply[at : at + step] for at in range(0, len(reply), step)])


def test_a_reply_has_a_bound_and_so_has_what_is_declared() -> None:
    value = bytes(8_000_000)
    reader = ValuesReader(5)
    reader.feed(b"*5\r\n")
    with pytest.raises(UnexpectedReply):
        feed(reader, [b"$8000000\r\n", value, b"\r\n"] * 4 + [b"$8000000\r\n"])
    assert len(reader.values) == 4


def test_more_than_was_asked_for_is_noticed() -> None:
    reader = ValuesReader(1)
    reader.feed(b"*1\r\n$-1\r\n+OK\r\n")
    assert (reader.is_complete, reader.has_more) == (True, True)


@given(VALUE_LISTS, st.data())
def test_a_changed_reply_is_refused_incomplete_or_what_hiredis_reads(
    values: list[bytes | None], data: st.DataObject
) -> None:
    changed = bytearray(reply_of(values))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b"*", b"$", b"9999", b"\r\n", b"-1"]))
        )
    reader = ValuesReader(len(values))
    try:
        other = reader.feed(bytes(changed))
    except UnexpectedReply:
        return
    if other is not None or not reader.is_complete:
        return
    theirs = hiredis.Reader(protocolError=ValueError, replyError=RuntimeError, notEnoughData=...)
    theirs.feed(bytes(changed))
    try:
        found = theirs.gets(False)
    except ValueError:
        assert b"$0" in changed  # a size with leading zeros
        return
    assert found == reader.values
    assert bool(theirs.has_data()) == reader.has_more
