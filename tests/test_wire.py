"""Requests whose meaning is certain are understood, all others are let by; answers are believed only if whole."""

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import wire
from proxy.providers import GENERIC, PROVIDERS, Form, Provider
from proxy.wire import Bypass, EmbeddingRequest, Encoding, Kind

ANY_FORM = replace(GENERIC, inputs=frozenset(Form))


def parse(body: str | bytes, provider: Provider = ANY_FORM) -> EmbeddingRequest:
    content = body.encode() if isinstance(body, str) else body
    return wire.parse_request(content, wire.read_object(content), provider)


IMAGE = '{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}'


@pytest.mark.parametrize(
    ("given_input", "kind", "items"),
    [
        ('"hello"', Kind.TEXT, ["hello"]),
        ('["a","b","a"]', Kind.TEXT, ["a", "b", "a"]),
        ("[1,2,3]", Kind.TOKENS, [[1, 2, 3]]),
        ("[[1],[2,3]]", Kind.TOKENS, [[1], [2, 3]]),
        (f"[{IMAGE}]", Kind.OBJECT, [json.loads(IMAGE)]),
    ],
)
def test_the_input_forms(given_input: str, kind: Kind, items: list[Any]) -> None:
    request = parse(f'{{"model":"m","input":{given_input}}}')
    assert (request.kind, request.items) == (kind, items)


@pytest.mark.parametrize(
    ("field", "encoding"),
    [
        ("", Encoding.FLOAT),
        (',"encoding_format":"float"', Encoding.FLOAT),
        (',"encoding_format":"base64"', Encoding.BASE64),
    ],
)
def test_the_encodings(field: str, encoding: Encoding) -> None:
    assert parse(f'{{"model":"m","input":"x"{field}}}').encoding is encoding


def test_key_fields_are_parameters_and_neutral_ones_are_not() -> None:
    request = parse('{"model":"m","input":"x","user":"u","dimensions":256,"input_type":null}')
    assert request.parameters == {"dimensions": 256, "input_type": None}
    assert request.length == 256


@pytest.mark.parametrize(("kind", "length"), [("int8", 256), ("binary", 32)])
def test_the_length_of_packed_vectors_whatever_the_other_fields_are(kind: str, length: int) -> None:
    body = orjson.dumps(
        {"model": "m", "input": "x", "output_dimension": 256, "input_type": {"binary": []}, "output_dtype": kind}
    )
    assert wire.parse_request(body, orjson.loads(body), PROVIDERS["voyage"]).length == length


def test_a_field_other_than_the_type_of_a_vector_does_not_make_it_bits() -> None:
    body = orjson.dumps(
        {"model": "m", "input": "x", "output_dimension": 256, "input_type": "binary", "output_dtype": "int8"}
    )
    assert wire.parse_request(body, orjson.loads(body), PROVIDERS["voyage"]).length == 256


BYPASSES = [
    ("not-json", "", b'{"model":', b'{"model":"m","input":"\\ud800"}', b'{"model":"m","input":"\xff"}'),
    ("not-json", b'{"model":"m","input":"x","dimensions":NaN}', b'\xef\xbb\xbf{"model":"m","input":"x"}'),
    ("not-json", b'{"model":"m","input":"x"} {}', '{"model":"m","input":"x"}'.encode("utf-16")),
    ("not-an-object", b"[]", b'"x"', b"null", b"1"),
    ("model", b'{"input":"x"}', b'{"model":null,"input":"x"}', b'{"model":["m"],"input":"x"}'),
    ("input-form", b'{"model":"m"}', b'{"model":"m","input":null}', b'{"model":"m","input":[]}'),
    ("input-form", b'{"model":"m","input":{"content":"x"}}', b'{"model":"m","input":["a",[1]]}'),
    ("input-form", b'{"model":"m","input":[1,"a"]}', b'{"model":"m","input":[true]}', b'{"model":"m","input":[1.0]}'),
    ("input-form", b'{"model":"m","input":[[1,true]]}', b'{"model":"m","input":[[1],["a"]]}'),
    ("input-form", b'{"model":"m","input":[{"content":[]}]}', b'{"model":"m","input":[{"content":"x"}]}'),
    ("input-form", b'{"model":"m","input":[{"content":[{"type":"text"}]}]}', b'{"model":"m","input":[{"video":"x"}]}'),
    ("input-form", b'{"model":"m","input":[{"content":[{"type":"text","text":"x","cache":1}]}]}'),
    ("input-form", b'{"model":"m","input":[{"content":[{"type":"text","text":"x"}],"late":true}]}'),
    ("empty-item", b'{"model":"m","input":""}', b'{"model":"m","input":["a",""]}', b'{"model":"m","input":[[1],[]]}'),
    ("token-range", b'{"model":"m","input":[-1]}', b'{"model":"m","input":[9007199254740993]}'),
    (
        "remote-media",
        b'{"model":"m","input":[{"content":[{"type":"image_url","image_url":{"url":"https://e/x.png"}}]}]}',
    ),
    (
        "encoding",
        b'{"model":"m","input":"x","encoding_format":null}',
        b'{"model":"m","input":"x","encoding_format":"int4"}',
    ),
    ("unknown-field", b'{"model":"m","input":"x","foo":1}', b'{"model":"m","input":"x","late_chunking":true}'),
    (
        "unknown-field",
        b'{"model":"m","input":"x","messages":[]}',
        b'{"model":"m","input":"x","embedding_type":["float"]}',
    ),
    ("unknown-field", b'{"model":"m","input":"x","return_multivector":true}'),
    ("too-deep", b'{"model":"m","input":"x","user":' + b"[" * 300 + b"]" * 300 + b"}"),
    ("too-deep", b'{"model":"m","input":"x","provider":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}"),
    ("too-many-items", orjson.dumps({"model": "m", "input": ["a"] * 2049})),
    ("input-form", b'{"model":"m","input":[{"content":[{"type":"image_url","image_url":{"url":"data:,","d":1}}]}]}'),
    ("list-parameter", b'{"model":"m","input":"x","modality":["text","image"]}'),
    ("inexact-number", b'{"model":"m","input":"x","dimensions":18446744073709551616}'),
    ("inexact-number", b'{"model":"m","input":"x","provider":{"a":[1e300]}}'),
    ("duplicate-key", b'{"model":"a","model":"b","input":"x"}', b'{"model":"m","input":"x","input":"x"}'),
    ("duplicate-key", b'{"model":"m","input":"x","provider":{"a":1,"a":1}}'),
    ("duplicate-key", b'{"model":"a","\\u006dodel":"b","input":"x"}'),
    ("duplicate-key", b'{"model":"a","model":"b","input":"\\u003a"}', b'{"model":"a","model":"b","input":"\\u003A:"}'),
    ("duplicate-key", b'{"model":"m","input":[{"content":[{"type":"text","text":"x","text":"y"}]}]}'),
    ("duplicate-key", b'{"user":"b:","user":"c","model":"m","input":"x"}'),
]


@pytest.mark.parametrize(
    ("reason", "body"),
    [(reason, body) for reason, *bodies in BYPASSES for body in bodies],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_not_certain_is_bypassed(reason: str, body: bytes) -> None:
    with pytest.raises(Bypass) as bypass:
        parse(body)
    assert bypass.value.reason == reason


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a:b","input":["http://x:1","::"],"user":"u:v"}',
        b'{"model":"m","input":"\\u003a and \\u003A"}',
        b'{ "model" : "m" , "input" : "x" }',
        b'{"model":"m","input":[1,2],"provider":{"order:":["a:b"],"only":{"x":[{"y":"z:"}]}}}',
        IMAGE.join(['{"model":"m","input":[', "]}"]).encode(),
    ],
)
def test_colons_in_odd_places_are_no_duplicate_keys(body: bytes) -> None:
    assert parse(body).model


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(alphabet='a:"\\u03')),
    lambda inner: st.dictionaries(st.text(alphabet="a:u", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(st.tuples(st.sampled_from(["model", "input", "provider", "user", "task"]), JSON), max_size=6),
    st.booleans(),
)
def test_a_body_with_a_duplicate_key_never_parses(pairs: list[tuple[str, Any]], ascii_only: bool) -> None:
    members = [("model", "m"), ("input", "x:y"), *pairs]
    written = ",".join(f"{json.dumps(k)}:{json.dumps(v, ensure_ascii=ascii_only)}" for k, v in members)
    try:
        parse(f"{{{written}}}")
    except Bypass:
        return
    names = [name for name, _ in members]
    assert len(set(names)) == len(names)


def test_a_reduced_body_changes_nothing_but_the_input() -> None:
    request = parse('{"input":["a","b"],"model":"m","user":"ü","dimensions":null,"encoding_format":"base64"}')
    reduced = orjson.loads(wire.reduced_body(request, ["b"]))
    assert reduced == request.fields | {"input": ["b"]}
    assert list(reduced) == list(request.fields)


def test_a_reduced_body_does_not_go_by_the_id_of_the_whole_one() -> None:
    request = parse('{"input":["a","b"],"model":"m","request_id":"r","priority":1}', PROVIDERS["vllm"])
    assert orjson.loads(wire.reduced_body(request, ["b"])) == {"input": ["b"], "model": "m", "priority": 1}
    keyed = replace(PROVIDERS["vllm"], key=frozenset({"request_id"}), neutral=frozenset({"priority"}))
    request = parse('{"input":["a","b"],"model":"m","request_id":"r"}', keyed)
    assert orjson.loads(wire.reduced_body(request, ["b"]))["request_id"] == "r"


@pytest.mark.parametrize("pattern", ["Acme/*Fusion*", "acme/*fusion*"])
def test_a_pattern_of_models_fits_in_any_case(pattern: str) -> None:
    row = replace(GENERIC, fused_models=(pattern,), multi_vector_models=())
    for model in ("Acme/A-Fusion-2", "ACME/a-fusion-2"):
        with pytest.raises(Bypass, match="cross-item"):
            parse(orjson.dumps({"model": model, "input": ["a", "b"]}), row)


def test_an_item_of_many_tokens_is_one_item() -> None:
    assert len(parse(orjson.dumps({"model": "m", "input": [1] * 100_000})).items) == 1


def test_a_long_name_of_a_model_is_not_remembered() -> None:
    before = wire.is_one_of.cache_info().misses
    for length in (1, 10**6):
        wire.is_one_of("unheard of " + "x" * length, ("*embed-v4*",))
    assert wire.is_one_of.cache_info().misses == before + 1
