"""The format of exports: in pieces of any size, and with any damage."""

import itertools
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.maintenance import archive_format
from proxy.maintenance.archive_format import Cursor, Damage, Decoder, End, Entry, Header, Part, UnknownFormat

KEYS = st.binary(min_size=32, max_size=32)
# Values that look like frames, too.
VALUES = st.one_of(st.binary(max_size=80), st.builds(archive_format.entry, KEYS, st.binary(max_size=9)))
ENTRIES = st.lists(st.tuples(KEYS, VALUES), max_size=12)


def decoded(pieces: Iterable[bytes]) -> list[Part]:
    decoder = Decoder()
    parts = [part for piece in pieces for part in decoder.feed(piece)]
    return [*parts, *decoder.close()]


def frames_of(entries: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    frames = [archive_format.header(store="s"), *(archive_format.entry(*entry) for entry in entries)]
    return [*frames, archive_format.cursor(b"here"), archive_format.end(len(entries))]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(bounds)]


@given(entries=ENTRIES, places=st.lists(st.integers(0, 10_000), max_size=20))
def test_what_was_written_is_read_in_pieces_of_any_size(entries: list[tuple[bytes, bytes]], places: list[int]) -> None:
    frames = frames_of(entries)
    parts = decoded(cut(b"".join(frames), places))
    header, *rest, cursor, end = parts
    assert header == Header({"format": 1, "store": "s"})
    assert [(part.key, part.value) for part in rest if isinstance(part, Entry)] == entries
    ends = [sum(map(len, frames[: number + 2])) for number in range(len(entries))]
    assert [part.end for part in rest if isinstance(part, Entry)] == ends
    assert cursor == Cursor(b"here", sum(map(len, frames[:-1])))
    assert end == End(len(entries))


@given(
    entries=ENTRIES,
    places=st.lists(st.integers(0, 10_000), max_size=20),
    damage=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=4),
    kept=st.integers(0, 10_000),
)
def test_of_a_damaged_file_what_is_whole_is_read_and_the_rest_is_named(
    entries: list[tuple[bytes, bytes]], places: list[int], damage: list[tuple[int, int]], kept: int
) -> None:
    frames = frames_of(entries)
    whole = b"".join(frames)
    file = bytearray(whole)
    for place, change in damage:
        file[place % len(file)] ^= change
    del file[len(file) - kept % len(file) // 4 :]
    intact, at = [], 0
    for frame in frames:
        if file[at : at + len(frame)] == frame:
            intact.append((at, frame))
        at += len(frame)
    if not intact:
        return
    parts = decoded(cut(bytes(file), places))
    found = [(part.key, part.value) for part in parts if isinstance(part, Entry)]
    expected = [
        entry for entry, frame in zip(entries, frames[1:], strict=False) if any(frame is its for _, its in intact)
    ]
    rest = iter(found)
    assert all(entry in rest for entry in expected)  # in order; a damaged value may contain further whole frames
    damaged = {at for part in parts if isinstance(part, Damage) for at in range(part.start, part.end)}
    in_frames = {place for at, frame in intact for place in range(at, at + len(frame))}
    assert damaged.isdisjoint(in_frames)
    if len(found) == len(expected):
        assert damaged == set(range(len(file))) - in_frames


@pytest.mark.parametrize("data", [b"", b"x", b"SQLite format 3\0" * 100, b"\xf5EC", b"\xf5ECH\0\0\0\0"])
def test_something_else_is_no_export(data: bytes) -> None:
    with pytest.raises(UnknownFormat, match="it is not an export of embedding-proxy cache export"):
        decoded([data])


def test_a_later_format_is_refused_and_unknown_kinds_are_skipped() -> None:
    later = archive_format._frame(b"H", b'{"format":2}')
    with pytest.raises(UnknownFormat, match="its format is 2; this version of embedding-proxy reads format 1"):
        decoded([later])
    with pytest.raises(UnknownFormat, match="its format is None"):
        decoded([archive_format._frame(b"H", b"{")])
    parts = decoded([archive_format.header(), archive_format._frame(b"?", b"new"), archive_format.end(0)])
    assert parts == [Header({"format": 1}), End(0)]


def test_a_length_beyond_all_bounds_is_damage_and_not_waited_for() -> None:
    head = archive_format._MARK + b"R" + (2**31).to_bytes(4)
    head += archive_format._check(head)
    decoder = Decoder()
    assert list(decoder.feed(archive_format.header() + head + archive_format.end(0)))[1:] == [
        Damage(len(archive_format.header()), len(archive_format.header()) + len(head)),
        End(0),
    ]
