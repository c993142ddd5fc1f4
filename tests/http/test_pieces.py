from hypothesis import given
from hypothesis import strategies as st

from proxy.http import pieces
from proxy.http.pieces import Pieces


@given(st.lists(st.integers(0, 3 * pieces._PIECE_BYTES // 2), max_size=6))
def test_what_is_joined_is_what_was_written(sizes: list[int]) -> None:
    chunks = [bytes([number]) * size for number, size in enumerate(sizes)]
    collected = Pieces()
    for chunk in chunks:
        collected.write(chunk)
    assert collected.joined() == b"".join(chunks)


def test_only_a_large_body_is_joined_in_a_thread() -> None:
    collected = Pieces()
    collected.write(bytes(1024))
    assert not collected.is_large
    for _ in range(4096):
        collected.write(bytes(1024))
    assert collected.is_large
