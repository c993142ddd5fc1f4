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
from proxy.wire import Bypass, EmbeddingRequest, Encoding, InvalidAnswer, Kind

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


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"data":[]}', 200),
        (b'{"data":[],"error":null}', 200),
        (b'{"error":{"code":502}}', 502),
        (b'{"error":{"code":"rate_limited"}}', 400),
        (b'{"error":"no"}', 400),
        (b'{"error":{"code":200}}', 400),
        (b'{"error":', 200),
        (b'["error"]', 200),
    ],
)
def test_the_status_in_a_200(body: bytes, status: int) -> None:
    assert wire.error_status(body) == status


# --- answers

DATUM = {"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}
ANSWER = {"object": "list", "data": [DATUM], "model": "m", "usage": {"prompt_tokens": 3, "total_tokens": 3}}


def answer(**changes: Any) -> bytes:
    return orjson.dumps({**ANSWER, **changes})


def data(*members: dict[str, Any]) -> list[dict[str, Any]]:
    return [DATUM | member for member in members]


def test_vectors_go_by_index_not_by_position() -> None:
    body = answer(data=data({"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}))
    parsed = wire.parse_answer(body, GENERIC, items=2, length=None)
    assert [vector.array().tolist() for vector in parsed.vectors] == [[1.0], [2.0]]


def test_without_any_index_position_will_do() -> None:
    body = answer(data=[{"embedding": [1.0]}, {"embedding": [2.0]}])
    parsed = wire.parse_answer(body, GENERIC, items=2, length=None)
    assert [vector.array().tolist() for vector in parsed.vectors] == [[1.0], [2.0]]


def test_a_bare_data_array_is_enough() -> None:
    parsed = wire.parse_answer(orjson.dumps({"data": [DATUM]}), GENERIC, items=1, length=2)
    assert parsed.model == ""
    assert parsed.usage == {"prompt_tokens": 0, "total_tokens": 0}


def test_an_error_that_is_null_is_none() -> None:
    assert wire.parse_answer(answer(error=None), GENERIC, items=1, length=None).model == "m"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"total_tokens": 7}, {"prompt_tokens": 7, "total_tokens": 7}),
        ({"prompt_tokens": 7}, {"prompt_tokens": 7, "total_tokens": 7}),
        ({"prompt_tokens": 0, "total_tokens": 9}, {"prompt_tokens": 0, "total_tokens": 9}),
        ({"prompt_tokens": 5.0, "total_tokens": 5}, {"prompt_tokens": 5, "total_tokens": 5}),
        ({"prompt_tokens": True, "total_tokens": -1}, {"prompt_tokens": 0, "total_tokens": 0}),
        ({"prompt_tokens": "7", "total_tokens": None}, {"prompt_tokens": 0, "total_tokens": 0}),
        ({"prompt_tokens": 7, "total_tokens": 7, "cost": 0.1}, {"prompt_tokens": 7, "total_tokens": 7, "cost": 0.1}),
        (None, {"prompt_tokens": 0, "total_tokens": 0}),
        ([], {"prompt_tokens": 0, "total_tokens": 0}),
    ],
)
def test_usage_always_has_both_integers(usage: Any, expected: dict[str, Any]) -> None:
    assert wire.parse_answer(answer(usage=usage), GENERIC, items=1, length=None).usage == expected


@pytest.mark.parametrize(
    ("reason", "body"),
    [
        ("not-json", b""),
        ("not-json", b"<html>"),
        ("not-json", answer()[:-1]),
        ("error-in-200", b"[]"),
        ("error-in-200", b'{"error":{"message":"no"}}'),
        ("error-in-200", answer(error="no")),
        ("no-data", b"{}"),
        ("no-data", answer(data=None)),
        ("no-data", answer(data={})),
        ("no-data", answer(data=[1, 2])),
        ("count", answer(data=[])),
        ("count", answer(data=data({}))),
        ("count", answer(data=data({}, {}, {}))),
        ("indices", answer(data=data({"index": 0}, {"index": 0}))),
        ("indices", answer(data=data({"index": 0}, {"index": 2}))),
        ("indices", answer(data=data({"index": 1}, {"index": 2}))),
        ("indices", answer(data=data({"index": 0}, {"index": None}))),
        ("indices", answer(data=data({"index": "0"}, {"index": "1"}))),
        ("indices", answer(data=data({"index": False}, {"index": True}))),
        ("indices", answer(data=data({"index": 0.0}, {"index": 1.0}))),
        ("no-embedding", answer(data=data({"index": 0}, {"index": 1, "embedding": None}))),
        ("vector", answer(data=data({"index": 0}, {"index": 1, "embedding": [0.0, 0.0]}))),
        ("vector", answer(data=data({"index": 0}, {"index": 1, "embedding": [[1.0], [2.0]]}))),
        ("vector", answer(data=data({"index": 0}, {"index": 1, "embedding": "%"}))),
        ("mixed-dimensions", answer(data=data({"index": 0}, {"index": 1, "embedding": [1.0]}))),
        (
            "other-dimensions",
            answer(data=data({"index": 0, "embedding": [1.0] * 3}, {"index": 1, "embedding": [1.0] * 3})),
        ),
        ("not-json", answer().replace(b"0.5", b"NaN")),
        ("not-json", answer().replace(b"0.5", b"1e999")),
    ],
)
def test_what_does_not_check_out_is_refused(reason: str, body: bytes) -> None:
    with pytest.raises(InvalidAnswer) as invalid:
        wire.parse_answer(body, GENERIC, items=2, length=2)
    assert invalid.value.reason == reason


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=50), st.text(), st.integers(0, 2**40))
def test_what_is_assembled_is_what_openai_documents(numbers: list[int], model: str, tokens: int) -> None:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    texts = [b"[%d]" % number for number in numbers]
    body = wire.assemble(texts, model, usage, {})
    told = {"id": model, "created": {"at": tokens}}
    assert orjson.loads(wire.assemble(texts, model, usage, told)) == orjson.loads(body) | told
    assert orjson.loads(body) == {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": [number]} for i, number in enumerate(numbers)],
        "model": model,
        "usage": usage,
    }


@given(st.integers(0, 10**6), st.lists(st.integers(1, 10**5), min_size=1, max_size=50))
def test_shared_tokens_add_up_and_follow_the_weights(total: int, weights: list[int]) -> None:
    shares = wire.share_tokens(total, weights)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * weight / sum(weights)) < 1


def test_an_item_of_many_tokens_is_one_item() -> None:
    assert len(parse(orjson.dumps({"model": "m", "input": [1] * 100_000})).items) == 1


def test_a_long_name_of_a_model_is_not_remembered() -> None:
    before = wire.is_one_of.cache_info().currsize
    for length in (1, 10**6):
        wire.is_one_of("unheard of " + "x" * length, ("*embed-v4*",))
    assert wire.is_one_of.cache_info().currsize == before + 1
