from hypothesis import given
from hypothesis import strategies as st

from proxy.passthrough.frames import Frames, close_frame


def frame(opcode: int, payload: bytes, *, is_masked: bool, is_last: bool = True) -> bytes:
    """A frame as RFC 6455 §5.2 draws it, its length in the shortest form."""
    length = len(payload)
    bit = 0x80 if is_masked else 0
    if length < 126:
        size = bytes([bit | length])
    elif length < 2**16:
        size = bytes([bit | 126]) + length.to_bytes(2)
    else:
        size = bytes([bit | 127]) + length.to_bytes(8)
    return bytes([(0x80 if is_last else 0) | opcode]) + size + (b"mask" if is_masked else b"") + payload


payloads = st.one_of(
    st.binary(max_size=20), st.sampled_from([125, 126, 127, 65535, 65536, 70_000]).map(lambda size: b"\x88" * size)
)
frames = st.builds(
    frame, st.sampled_from([0, 1, 2, 9, 10, 11]), payloads, is_masked=st.booleans(), is_last=st.booleans()
)


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 200_000), max_size=12))
def test_boundaries_are_found_for_any_chunking(sent: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(sent)
    boundaries = {len(b"".join(sent[:count])) for count in range(len(sent) + 1)}
    followed, last = Frames(), 0
    for cut in sorted({*(cut for cut in cuts if cut <= len(stream)), *boundaries}):
        followed.feed(stream[last:cut])
        assert followed.is_between == (cut in boundaries)
        last = cut
    assert not followed.has_close


@given(st.lists(frames, max_size=3), st.booleans())
def test_close_frame_is_detected(before: list[bytes], is_masked: bool) -> None:
    followed = Frames()
    followed.feed(b"".join(before))
    assert not followed.has_close
    for byte in frame(8, b"\x03\xe8bye", is_masked=is_masked):
        followed.feed(bytes([byte]))
    assert (followed.has_close, followed.is_between) == (True, True)


def test_encoded_close_frame() -> None:
    assert close_frame(1011, is_masked=False) == b"\x88\x02\x03\xf3"
    assert close_frame(1001, is_masked=True) == b"\x88\x82\x00\x00\x00\x00\x03\xe9"
