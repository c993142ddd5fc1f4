"""Where one request ends and the next begins, by bytes alone."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.http.recorder import HEAD_END, MAX_WHOLE_BYTES, RequestRecorder, head_of

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n"


def fed(*pieces: bytes) -> RequestRecorder:
    recorder = RequestRecorder()
    for piece in pieces:
        recorder.feed(piece)
    return recorder


def test_a_new_connection_is_at_a_boundary() -> None:
    assert RequestRecorder().at_boundary
    assert fed(b"").at_boundary
    assert not fed(b"G").at_boundary


@pytest.mark.parametrize(
    ("pieces", "body_bytes"),
    [
        ((GET,), 0),
        ((GET[:5], GET[5:]), 0),
        ((POST + b"abc",), 3),
        ((POST, b"abc"), 3),
        ((POST[:-1], POST[-1:] + b"a", b"", b"bc"), 3),
        ((POST, b"\r\n\r"), 3),  # a body may look like the end of a head
    ],
)
def test_a_request_that_is_all_that_came_ends_at_a_boundary(pieces: tuple[bytes, ...], body_bytes: int) -> None:
    recorder = fed(*pieces)
    assert recorder.whole(body_bytes) == b"".join(pieces)
    recorder.end(body_bytes)
    assert recorder.at_boundary
    assert recorder.whole(body_bytes) is None


@pytest.mark.parametrize(
    ("pieces", "body_bytes"),
    [
        ((GET + GET,), 0),  # pipelined
        ((GET, b"G"), 0),
        ((POST + b"abc\r\n",), 3),  # an empty line that some clients send after a body
        ((POST + b"ab",), 3),  # responded to before its body was complete
        ((POST + b"abc",), None),  # chunked, or upgraded
        ((b"\r\n" + GET,), 0),
        ((b"\n" + GET,), 0),
        ((GET[:-2],), 0),
        ((b"\r\n\r\n",), 0),
        ((b"GET / HTTP/1.1\n\n",), 0),
    ],
)
def test_anything_else_ends_at_none_and_there_is_none_later(pieces: tuple[bytes, ...], body_bytes: int | None) -> None:
    recorder = fed(*pieces)
    assert recorder.whole(body_bytes) is None
    recorder.end(body_bytes)
    for _ in range(3):
        assert not recorder.at_boundary
        recorder.feed(GET)
        assert recorder.whole(0) is None
        recorder.end(0)


@pytest.mark.parametrize("first", [0, 1, MAX_WHOLE_BYTES, 2 * MAX_WHOLE_BYTES])
def test_a_long_request_ends_at_a_boundary_too(first: int) -> None:
    head = POST.replace(b": 3", b": 40000")
    sent = head + b"x" * 40_000
    first += len(head)
    recorder = fed(sent[:first], sent[first:])
    assert recorder.whole(40_000) is None
    recorder.end(40_000)
    assert recorder.at_boundary
    recorder.feed(GET)
    assert recorder.whole(0) == GET


def test_a_long_request_whose_head_was_not_recorded_ends_at_none() -> None:
    recorder = fed(POST[:9], POST[9:] + b"x" * 40_000)
    recorder.end(40_000)
    assert not recorder.at_boundary


def test_of_a_long_request_only_the_head_is_kept() -> None:
    recorder = fed(POST + b"x" * 100_000, b"x" * 100_000)
    assert recorder._recorded == POST


@pytest.mark.parametrize(("size", "is_recorded"), [(MAX_WHOLE_BYTES, True), (MAX_WHOLE_BYTES + 1, False)])
@pytest.mark.parametrize("is_all_head", [False, True])
def test_the_limit_is_inclusive(size: int, *, is_recorded: bool, is_all_head: bool) -> None:
    sent = b"GET / HTTP/1.1\r\nX: ".ljust(size - 4, b"x") + HEAD_END if is_all_head else GET.ljust(size, b"x")
    body_bytes = 0 if is_all_head else size - len(GET)
    assert (fed(sent).whole(body_bytes) == sent) is is_recorded


def test_the_head_of_bytes_without_its_end_is_none() -> None:
    assert head_of(POST + b"abc\r\n\r\n") == POST
    assert len(head_of(POST[:-1])) < len(HEAD_END)
    assert head_of(b"") == b""


FIELDS = st.lists(st.binary(min_size=1, max_size=40).filter(lambda it: b"\r" not in it and b"\n" not in it), max_size=3)
BODIES = st.one_of(st.binary(max_size=40), st.sampled_from([b"\r\n\r\n", GET, POST, b"x" * MAX_WHOLE_BYTES]))
REQUESTS = st.builds(lambda fields, body: (b"\r\n".join([b"POST /", *fields]) + HEAD_END, body), FIELDS, BODIES)


CUTS = st.lists(st.one_of(st.integers(0, 80), st.integers(0, 2 * MAX_WHOLE_BYTES)), max_size=4)


@given(st.lists(REQUESTS, min_size=1, max_size=4), CUTS)
@example([(POST[:-4] + HEAD_END, b"x" * MAX_WHOLE_BYTES)], [9])
def test_requests_one_after_the_other_are_recorded_however_they_are_cut(
    requests: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    recorder = RequestRecorder()
    for head, body in requests:
        sent = head + body
        assert recorder.at_boundary
        ends = sorted({len(sent), *(min(cut, len(sent)) for cut in cuts)} - {0})
        for start, end in pairwise([0, *ends]):
            recorder.feed(sent[start:end])
        assert recorder.whole(len(body)) == (sent if len(sent) <= MAX_WHOLE_BYTES else None)
        recorder.end(len(body))
        kept = max((end for end in ends if end <= MAX_WHOLE_BYTES), default=ends[0])
        assert recorder.at_boundary is (kept >= len(head))
        if not recorder.at_boundary:
            return


PIECES = st.one_of(
    st.sampled_from([b"", b"\r\n", b"\r", HEAD_END, GET, POST, b"abc", b"x" * MAX_WHOLE_BYTES]), st.binary(max_size=9)
)
STEPS = st.lists(st.one_of(PIECES, st.none(), st.integers(0, 40)), max_size=12)


@given(STEPS)
@example([GET, 0, POST, b"abc", 3])
@example([GET + GET, 0, GET, 0])
def test_no_boundary_is_claimed_that_bytes_do_not_prove(steps: list[bytes | int | None]) -> None:
    """Bytes are fed; a number or None is the end of a request, with its Content-Length."""
    recorder = RequestRecorder()
    sent = b""  # since the last boundary
    for step in steps:
        if isinstance(step, bytes):
            recorder.feed(step)
            sent += step
            continue
        whole = recorder.whole(step)
        recorder.end(step)
        is_one = step is not None and 0 < sent.find(HEAD_END) == len(sent) - len(HEAD_END) - step
        if recorder.at_boundary:
            assert is_one
            assert sent[:1] not in {b"\r", b"\n"}
        if whole is not None:
            assert (whole, recorder.at_boundary) == (sent, True)
            assert len(whole) <= MAX_WHOLE_BYTES
        if not recorder.at_boundary:
            return
        sent = b""
