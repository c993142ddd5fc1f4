"""A head that fits a template is read by the parser as the template's own, but for the values that may differ."""

import asyncio
import re

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from hypothesis import given
from hypothesis import strategies as st

from proxy.http.head_template import Head, HeadTemplate

HEAD = (
    b"POST /v1/embeddings HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer k\r\nX-Request-Id: one\r\n"
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nTraceState: a=1, b=2\r\n"
    b"Content-Length: 7\r\nContent-Type: application/json\r\n\r\n"
)
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)
LENGTHS = st.integers(0, 9_999_999)


def template(head: bytes = HEAD) -> HeadTemplate:
    found = HeadTemplate.of(head)
    assert found is not None
    return found


def parsed(loop: asyncio.AbstractEventLoop, sent: bytes) -> RawRequestMessage | None:
    """What aiohttp's parser makes of the only head in ``sent``."""
    protocol = BaseProtocol(loop)
    parser = HttpRequestParser(protocol, loop, 2**16, max_line_size=2**16, max_field_size=2**16, max_headers=128)
    try:
        messages, _, _ = parser.feed_data(sent)
    except HttpProcessingError:
        return None
    return messages[0][0] if len(messages) == 1 else None


def test_a_head_fits_its_own_template() -> None:
    fields = {
        "x-request-id": "one",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "tracestate": "a=1, b=2",
    }
    assert template().match(HEAD) == Head(len(HEAD), 7, fields)
    assert template().match(HEAD + b"a body") == Head(len(HEAD), 7, fields)


@given(VISIBLE, LENGTHS)
def test_others_differ_in_their_values_alone(request_id: str, length: int) -> None:
    other = HEAD.replace(b"one", request_id.encode()).replace(b"Length: 7", b"Length: %d" % length)
    head = template().match(other)
    assert head is not None
    assert (head.size_bytes, head.body_bytes, head.fields["x-request-id"]) == (len(other), length, request_id)


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace(b"Content-Length: 7\r\n", b""),
        HEAD.replace(b"Content-Length: 7", b"Transfer-Encoding: chunked"),
        HEAD.replace(b"Content-Length: 7", b"Content-Length:7"),
        HEAD.replace(b"Content-Length: 7", b"Content-Length: 07"),
        HEAD.replace(b"Content-Length: 7", b"Content-Length: +7"),
        HEAD.replace(b"Content-Length: 7", b"Content-Length: 7 "),
        HEAD.replace(b"Content-Length: 7", b"Content-Length: 70000000"),
        HEAD.replace(b"Content-Length: 7", b"Content-Length: 7\r\ncontent-length: 7"),
        HEAD.replace(b"X-Request-Id: one", b"X-Request-Id: one\r\nx-request-id: two"),
        HEAD.replace(b"X-Request-Id: one", b"X-Request-Id: one two"),
        HEAD.replace(b"X-Request-Id: one", b"X-Request-Id: " + b"x" * 129),
        HEAD.replace(b"X-Request-Id: one", b"X-Request-Id: "),
        HEAD.replace(b"X-Request-Id: one", "X-Request-Id: é".encode()),
        HEAD.replace(b"a=1, b=2", b"a=1, b=2 "),
    ],
)
def test_an_unusual_head_has_no_template(head: bytes) -> None:
    assert HeadTemplate.of(head) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Bearer k", b"Bearer l"),
        (b"Content-Length: 7", b"Content-Length: 07"),
        (b"Content-Length: 7", b"Content-Length:  7"),
        (b"Content-Length: 7", b"Content-Length: 7,7"),
        (b"Content-Length: 7", b"Content-Length: 7\r\nContent-Length: 7"),
        (b"Content-Length: 7", b"Content-Length: 7\r\nTransfer-Encoding: chunked"),
        (b": one", b": one\r\nTransfer-Encoding: chunked"),
        (b": one", b": one\nTransfer-Encoding: chunked"),
        (b": one", b": one\0"),
        (b": one", b": "),
        (b"X-Request-Id", b"x-request-id"),
        (b"b=2", b"b=2\rX: y"),
        (b"b=2", b"b=2 "),
        (b"POST", b"\r\nPOST"),
    ],
)
def test_what_differs_in_anything_else_does_not_fit(old: bytes, new: bytes) -> None:
    other = HEAD.replace(old, new, 1)
    assert other != HEAD
    assert template().match(other) is None


def test_a_cut_head_does_not_fit() -> None:
    assert all(template().match(HEAD[:end]) is None for end in range(len(HEAD)))


NAMES = st.sampled_from([b"Content-Length", b"x-request-id", b"traceparent", b"TraceState", b"X-A", b"Host"])
ODD = st.sampled_from(
    [b"", b"7", b"0", b"007", b"1 2", b" 7", b"7 ", b"a\rb", b"a\nb", b"\0", b"a: b", b"\xff", b"one"]
)
VALUES = st.one_of(ODD, st.binary(max_size=9), LENGTHS.map(lambda number: b"%d" % number), VISIBLE.map(str.encode))
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=5)


def head_of(fields: list[tuple[bytes, bytes]]) -> bytes:
    lines = [b"POST /v1/embeddings HTTP/1.1", *(name + b": " + value for name, value in fields)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


@given(st.data())
def test_the_parser_reads_what_fits_as_the_template_says(data: st.DataObject) -> None:
    """Even if it has never seen it: only the template's own head was accepted by it."""
    loop = asyncio.new_event_loop()
    try:
        fields = data.draw(st.permutations([(b"Content-Length", b"7"), *data.draw(FIELDS)]))
        accepted = parsed(loop, head_of(fields))
        found = HeadTemplate.of(head_of(fields))
        if accepted is None or found is None:
            return
        other = head_of([(name, data.draw(st.one_of(st.just(value), VALUES))) for name, value in fields])
        head = found.match(other)
        if head is None:
            return
        read = parsed(loop, other)
        assert read is not None
        assert head.size_bytes == len(other)
        assert read.headers.getall("Content-Length") == [str(head.body_bytes)]
        for name, value in head.fields.items():
            assert read.headers.getall(name) == [value]
        differing = {"content-length", *head.fields}
        rest = [[field for field in message.headers.items() if field[0].lower() not in differing]
                for message in (accepted, read)]  # fmt: skip
        assert rest[0] == rest[1]
        assert (read.method, read.path, read.version, read.should_close, read.chunked, read.upgrade) == (
            accepted.method, accepted.path, accepted.version, accepted.should_close, accepted.chunked,
            accepted.upgrade,
        )  # fmt: skip
    finally:
        loop.close()


def test_values_in_a_name_or_in_another_value_are_no_values() -> None:
    other = HEAD.replace(b"Host: h", b"Host: h\r\nX-A: content-length: 9\r\nX-Content-Length: 8")
    head = template(other).match(other)
    assert head is not None
    assert head.body_bytes == 7
    assert template(other).match(re.sub(rb": 9", b": 99", other)) is None
