from hypothesis import given
from hypothesis import strategies as st

from proxy import pieces
from proxy.pieces import Pieces
from proxy.steps import finish


def collected(chunks: list[bytes]) -> Pieces:
    found = Pieces()
    for chunk in chunks:
        found.write(chunk)
    return found


@given(st.lists(st.integers(0, 3 * pieces._PIECE_BYTES // 2), max_size=6))
def test_what_is_joined_is_what_was_written(sizes: list[int]) -> None:
    chunks = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    written = collected(chunks)
    assert written.size_bytes == sum(sizes)
    assert finish(written.joined()) == b"".join(chunks)


def test_a_large_body_is_joined_in_steps_that_free_what_they_have_copied() -> None:
    written = collected([bytes(1024)] * 4096)
    left = [len(written.full) for _ in written.joined()]
    assert left == list(range(4096 * 1024 // pieces._PIECE_BYTES + 1))[::-1]


def test_a_small_body_is_joined_at_once() -> None:
    assert list(collected([b"a", b"b"]).joined()) == []


def test_large_chunks_are_not_copied_before_they_are_joined() -> None:
    large = bytes(pieces._LARGE_CHUNK_BYTES)
    written = collected([b"a", large, b"b"])
    assert any(piece is large for piece in written.full)
    assert finish(written.joined()) == b"a" + large + b"b"
    assert not written.full
