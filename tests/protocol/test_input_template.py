"""A body that fits a template has the template's other members, and its keys are those of the parsed body."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.protocol import embedding_request, keys, request_body
from proxy.protocol.bypass import Bypass
from proxy.protocol.header_kinds import Fields
from proxy.protocol.input_template import InputTemplate
from proxy.protocol.items import ItemKind
from proxy.protocol.keys import TextKeys
from proxy.protocol.providers import PROVIDERS

NAMES = st.sampled_from(
    ["model", "encoding_format", "dimensions", "user", "input_type", "inputs", 'a"b', "é", "x", ","]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from(["m", "input", '"input":', "float"]))
MEMBERS = st.dictionaries(NAMES, st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.just({"input": "y"})), max_size=4)
TEXTS = st.text(max_size=9)
INPUTS = st.one_of(
    TEXTS, st.lists(TEXTS, max_size=4), st.lists(st.integers(0, 9), max_size=3), st.lists(st.one_of(TEXTS, SCALARS)),
    st.dictionaries(TEXTS, TEXTS, max_size=2), SCALARS,
)  # fmt: skip
SPACES = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n ")])


def written(members: dict[str, Any], place: int, given: Any, *, ascii_only: bool, spaces: tuple[str, str]) -> bytes:
    """A body whose input is the ``place``-th member."""
    names = list(members)
    ordered = {name: members[name] for name in names[:place]} | {"input": given}
    ordered |= {name: members[name] for name in names[place:]}
    return json.dumps(ordered, ensure_ascii=ascii_only, separators=spaces).encode()


@given(MEMBERS, st.integers(0, 4), INPUTS, INPUTS, st.booleans(), st.booleans(), SPACES)
def test_its_texts_are_those_of_the_parsed_body(
    members: dict[str, Any], place: int, first: Any, second: Any, one: bool, other: bool, spaces: tuple[str, str]
) -> None:
    body = written(members, place, first, ascii_only=one, spaces=spaces)
    template = InputTemplate.of(body, orjson.loads(body))
    if template is None:
        return
    for again in (body, written(members, place, second, ascii_only=other, spaces=spaces)):
        texts = template.texts(again)
        if texts is not None:
            assert orjson.loads(again) == {**orjson.loads(body), "input": texts}
            assert [""] != texts != ""
        elif again == body:
            assert not (isinstance(first, str) and first)


@given(
    MEMBERS, st.integers(0, 4), st.one_of(TEXTS, st.lists(TEXTS, max_size=3)), st.integers(0, 99), st.binary(max_size=3)
)
def test_whatever_it_takes_for_texts_is_what_the_parser_reads(
    members: dict[str, Any], place: int, texts: Any, at: int, junk: bytes
) -> None:
    body = written(members, place, texts, ascii_only=False, spaces=(",", ":"))
    template = InputTemplate.of(body, orjson.loads(body))
    assume(template is not None)
    assert template is not None
    for changed in (
        body[:at] + junk + body[at:],
        body[:at] + body[at + 1 :],
        body[:at] + body[at : at + 20] + body[at:],
    ):
        found = template.texts(changed)
        if found is not None:
            assert orjson.loads(changed) == {**orjson.loads(body), "input": found}
            assert json.loads(changed, object_pairs_hook=len) == json.loads(body, object_pairs_hook=len)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"model":"m","input":"b","user":"u"}', "b"),
        (b'{"model":"m","input":["b","c"],"user":"u"}', ["b", "c"]),
        (b'{"model":"m","input": "b" ,"user":"u"}', "b"),
        (b'{"model":"m","input":"\\u00e9","user":"u"}', "é"),
        (b'{"model":"m","input":"b","input":"c","user":"u"}', None),
        (b'{"model":"m","input":"b","x":1,"user":"u"}', None),
        (b'{"model":"m","input":"b","user":"u","user":"u"}', None),
        (b'{"model":"m","input":"b","user":"v"}', None),
        (b'{"model":"m","input":"","user":"u"}', None),
        (b'{"model":"m","input":["b",""],"user":"u"}', None),
        (b'{"model":"m","input":[],"user":"u"}', None),
        (b'{"model":"m","input":["b",1],"user":"u"}', None),
        (b'{"model":"m","input":[1,2],"user":"u"}', None),
        (b'{"model":"m","input":{"text":"b"},"user":"u"}', None),
        (b'{"model":"m","input":"\\ud800","user":"u"}', None),
        (b'{"model":"m","input":"\xff","user":"u"}', None),
        (b'{"model":"m","input":,"user":"u"}', None),
        (b'{"model":"m","input":"b"', None),
    ],
)
def test_the_input_of_a_body(body: bytes, found: Any) -> None:
    example = b'{"model":"m","input":"a","user":"u"}'
    template = InputTemplate.of(example, orjson.loads(example))
    assert template is not None
    assert template.texts(body) == found


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","\\u0069nput":"a"}',
        b'{"model":"input","x":"a"}',
        b'{"model":{"input":"a"}}',
        b'{"model":"m","input":1}',
        b'{"model":"m","input":"a","user":"%b"}' % (b"u" * 2048),
        b'{"model":"m","input":"a","x":[%b""]}' % (b'"",' * 9999),
        b'{%b"input":"a"}' % b"".join(b'"%d":"",' % number for number in range(40)),
    ],
)
def test_a_body_that_is_large_or_without_a_plain_input_has_none(body: bytes) -> None:
    assert InputTemplate.of(body, orjson.loads(body)) is None


HEADERS = st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), max_size=2)


@given(
    st.sampled_from(sorted(PROVIDERS)),
    st.dictionaries(st.sampled_from(["encoding_format", "dimensions", "user", "input_type"]), SCALARS, max_size=3),
    st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=4),
    st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=4),
    HEADERS,
    HEADERS,
)
def test_keys_of_further_texts_are_those_of_the_parsed_body(
    name: str, members: dict[str, Any], first: list[str], second: list[str], scope: Fields, others: Fields
) -> None:
    def parse(texts: list[str]) -> embedding_request.EmbeddingRequest:
        body = orjson.dumps({"model": "m", "input": texts, **members})
        return embedding_request.parse_request(body, request_body.parse_object(body), PROVIDERS[name])

    try:
        parsed = parse(first)
    except Bypass:
        return
    if parsed.kind is ItemKind.TEXT:
        given: dict[str, Any] = {"url": "u", "scope": scope, "vector_headers": others, "epoch": 0}
        assert TextKeys(parsed, **given).of(second) == keys.derive(parse(second), **given)
