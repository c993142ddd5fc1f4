"""Large JSON is cut into parts, and read as it would be as a whole."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocol import json_parts, request_body
from proxy.protocol.bypass import Bypass
from proxy.protocol.json_parts import JSONParseError

TEXT = st.text(alphabet='a"\\:,[]é\U0001f600\x00', max_size=4)
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        TEXT,
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
# What is no JSON, or is read in more than one way.
ODD = [
    b'{"a":1,"a":2}', b'{"a":[1,]}', b'{"a":01}', b'{"a":"\xff"}', b'{"\xff":1}', b'{"\\ud800":1}', b'{"a\x01":1}',
    b'{"a":1}x', b' {"a" : 1 , "input": ["a", "b" ] } ', b'\xef\xbb\xbf{"a":1}', b'{"a":NaN}', b'{"a":"\\u12"}',
    b'{"\\u006d":1}', b"[]", b'{"a":1,}', b'{"\xed\xa0\x80":1}', b'{"input":["\\ud800"]}',
    b'{"input":["\xed\xa0\x80"]}',
    b'{"a":[nul],"a":1}', b'{"a":[1],"a":{"b":2}}', b'{"a":{"b":01},"a":[2]}',
    b'{"a":1 "b":2}', b'{"\\q":1}', b'{"input":[ [1,2] , [3] ]}', b'{"input":[{"a":1,"a":2}]}', b'{"input":["a" "b"]}',
    b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}", b'{"a":18446744073709551616}', b'{"a":1e400}', b"", b"{", b"nul",
]  # fmt: skip


def as_a_whole(body: bytes) -> Any:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if type(value) is dict else None


def in_parts(body: bytes) -> Any:
    try:
        return request_body.parse_large_object(body)
    except Bypass:
        return None


@given(st.dictionaries(TEXT, JSON, max_size=4), JSON, st.lists(st.tuples(st.integers(0, 80), st.binary(max_size=2))))
def test_parts_are_read_as_the_whole_is(fields: dict[str, Any], given_input: Any, changes: Any) -> None:
    body = orjson.dumps(fields | {"input": given_input})
    for place, put in changes:
        body = body[:place] + put + body[place + 1 :]
    assert in_parts(body) == as_a_whole(body)


@given(st.dictionaries(TEXT, JSON, max_size=4), JSON, st.integers(1, 9), st.booleans())
def test_the_edges_of_windows_make_no_difference(
    fields: dict[str, Any], given_input: Any, window: int, ascii_only: bool
) -> None:
    body = json.dumps(fields | {"input": given_input}, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("proxy.protocol.json_extents._WINDOW", window)
        assert in_parts(body) == as_a_whole(body)


@pytest.mark.parametrize("text", ["x" * 70_000, '"\\' * 70_000, "\\" * 131_072 + '"', "é" * 200_000])
def test_long_texts_are_read_as_the_whole_is(text: str) -> None:
    for fields in ({"input": text, "user": text, "n": 1}, {"input": [text, "a", text], "user": {"a": [text]}}):
        body = orjson.dumps(fields)
        assert in_parts(body) == fields
        assert in_parts(body[:-1]) is None


@pytest.mark.parametrize("body", ODD, ids=lambda body: repr(body)[:40])
def test_odd_json_is_read_as_the_whole_is(body: bytes) -> None:
    assert in_parts(body) == as_a_whole(body)


@pytest.mark.parametrize("item", ["a", [1, 2], {"text": "a"}])
def test_too_many_elements_are_not_made(item: Any) -> None:
    most = json_parts.members(orjson.dumps({"input": [item] * 10}))["input"]
    elements = json_parts.elements(most, max_elements=10)
    assert elements is not None
    assert list(elements) == [item] * 10
    more = json_parts.members(orjson.dumps({"input": [item] * 100}))["input"]
    with pytest.raises(JSONParseError) as unparsed:
        json_parts.elements(more, max_elements=10)
    assert unparsed.value.reason == "too-many-items"


@pytest.mark.parametrize(
    "part", [list(range(10**6)), "x" * (26 * 10**6), [[]] * 10**6], ids=["tokens", "text", "arrays"]
)
def test_a_part_that_would_take_too_long_is_not_parsed(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = json_parts.members(orjson.dumps({"a": part}))["a"]
    monkeypatch.setattr(orjson, "loads", None)
    with pytest.raises(JSONParseError) as unparsed:
        json_parts.value(raw)
    assert unparsed.value.reason == "too-complex"


def test_a_large_part_that_is_quick_to_parse_is_parsed() -> None:
    tokens = list(range(300_000))
    assert json_parts.value(json_parts.members(orjson.dumps({"a": tokens}))["a"]) == tokens
