"""Requests with a certain meaning are parsed, all others are bypassed."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocol import embedding_request, keys, provider, request_body
from proxy.protocol.bypass import Bypass
from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.items import ItemKind
from proxy.protocol.provider import InputFormat, Provider
from proxy.protocol.providers import GENERIC, PROVIDERS
from proxy.protocol.vectors import Encoding
from proxy.steps import finish

ANY_FORM = replace(GENERIC, inputs=frozenset(InputFormat))


def parse(body: str | bytes, provider: Provider = ANY_FORM) -> EmbeddingRequest:
    """Parse a body as a small and as a large one, with the same result."""
    content = body.encode() if isinstance(body, str) else body
    small = understood(content, provider)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("proxy.protocol.json_parts.LARGE_BYTES", 0)
        large = understood(content, provider)
    if isinstance(small, Bypass):
        assert isinstance(large, Bypass)
        assert large.reason == small.reason
        raise small
    assert repr(large) == repr(small)  # the exceptions in them are two
    return small


def understood(body: bytes, provider: Provider) -> EmbeddingRequest | Bypass:
    try:
        return embedding_request.parse_request(body, request_body.parse_object(body), provider)
    except Bypass as bypass:
        return bypass


IMAGE = '{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}'


@pytest.mark.parametrize(
    ("given_input", "kind", "items"),
    [
        ('"hello"', ItemKind.TEXT, ["hello"]),
        ('["a","b","a"]', ItemKind.TEXT, ["a", "b", "a"]),
        ("[1,2,3]", ItemKind.TOKENS, [[1, 2, 3]]),
        ("[[1],[2,3]]", ItemKind.TOKENS, [[1], [2, 3]]),
        (f"[{IMAGE}]", ItemKind.OBJECT, [json.loads(IMAGE)]),
    ],
)
def test_each_form_of_input_has_its_kind_and_items(given_input: str, kind: ItemKind, items: list[Any]) -> None:
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
def test_the_encoding_is_that_of_encoding_format(field: str, encoding: Encoding) -> None:
    assert parse(f'{{"model":"m","input":"x"{field}}}').encoding is encoding


def test_key_fields_are_parameters_and_neutral_ones_are_not() -> None:
    request = parse('{"model":"m","input":"x","user":"u","dimensions":256,"input_type":null}')
    assert request.parameters == {"dimensions": 256, "input_type": None}


# The meaning of an item is uncertain, that of the body is not.
WHOLES = [
    ("model", b'{"input":"x"}', b'{"model":null,"input":"x"}', b'{"model":["m"],"input":"x"}'),
    ("input-form", b'{"model":"m"}', b'{"model":"m","input":null}', b'{"model":"m","input":[]}'),
    ("input-form", b'{"model":"m","input":{"content":"x"}}', b'{"model":"m","input":["a",[1]]}'),
    ("input-form", b'{"model":"m","input":[1,"a"]}', b'{"model":"m","input":[true]}', b'{"model":"m","input":[1.0]}'),
    ("input-form", b'{"model":"m","input":[[1,true]]}', b'{"model":"m","input":[[1],["a"]]}'),
    ("input-form", b'{"model":"m","input":[{"content":[]}]}', b'{"model":"m","input":[{"content":"x"}]}'),
    ("input-form", b'{"model":"m","input":[{"content":[{"type":"text"}]}]}', b'{"model":"m","input":[{"video":"x"}]}'),
    ("input-form", b'{"model":"m","input":[{"content":[{"type":"text","text":"x"}],"late":true}]}'),
    ("input-form", b'{"model":"m","input":[{"content":[{"type":"image_url","image_url":{"url":"data:,","d":1}}]}]}'),
    ("empty-item", b'{"model":"m","input":""}', b'{"model":"m","input":["a",""]}', b'{"model":"m","input":[[1],[]]}'),
    ("empty-item", b'{"model":"m","input":["https://e/x.png",""]}'),
    ("unknown-field", b'{"model":"m","input":"x","foo":1}', b'{"model":"m","input":"x","late_chunking":true}'),
    ("unknown-field", b'{"model":"m","messages":[{"role":"user","content":"x"}],"input":"x"}'),
    ("unknown-field", b'{"model":"m","input":"x","embedding_type":["float"]}', b'{"model":"m","input":"x","foo":null}'),
    ("unknown-field", b'{"model":"m","input":"x","return_multivector":true}'),
    ("unknown-field", b'{"model":"m","input":"x","drop_params":true}', b'{"model":"m","input":"x","timeout":600}'),
    ("unknown-field", b'{"model":"m","input":"x","extra_body":{}}', b'{"model":"m","input":"x","keep_alive":"5m"}'),
    ("unknown-field", b'{"model":"m","input":"x","metadata":{"a":["b"]}}'),
    ("list-parameter", b'{"model":"m","input":"x","modality":["text","image"]}'),
]


@pytest.mark.parametrize(
    ("reason", "body"),
    [(reason, body) for reason, *bodies in WHOLES for body in bodies],
    ids=lambda value: repr(value)[:60],
)
def test_requests_that_are_keyed_by_their_whole_body(reason: str, body: bytes) -> None:
    request = parse(body)
    assert (request.kind, len(request.items)) == (ItemKind.WHOLE, request_body.count_items(request.fields))
    assert request.doubt is not None
    assert request.doubt.reason == reason


BYPASSES = [
    ("not-json", "", b'{"model":', b'{"model":"m","input":"\\ud800"}', b'{"model":"m","input":"\xff"}'),
    ("not-json", b'{"model":"m","input":"x","dimensions":NaN}', b'\xef\xbb\xbf{"model":"m","input":"x"}'),
    ("not-json", b'{"model":"m","input":"x"} {}', '{"model":"m","input":"x"}'.encode("utf-16")),
    ("not-an-object", b"[]", b'"x"', b"null", b"1"),
    ("token-range", b'{"model":"m","input":[-1]}', b'{"model":"m","input":[9007199254740993]}'),
    (
        "remote-media",
        b'{"model":"m","input":[{"content":[{"type":"image_url","image_url":{"url":"https://e/x.png"}}]}]}',
        b'{"model":"m","input":[{"pdf":"s3://bucket/x.pdf"}]}',
        b'{"model":"m","input":"gs://bucket/x.png","foo":"image"}',
        b'{"model":"m","input":["x","//e/x.png"],"modality":["text","image"]}',
        b'{"model":"m","input":"x","image":{"url":" HTTPS://e/x.png"}}',
    ),
    (
        "encoding",
        b'{"model":"m","input":"x","encoding_format":"int4"}',
        b'{"model":"m","input":"x","encoding_format":1}',
    ),
    (
        "encoding",
        b'{"model":"m","input":"x","encoding_format":["float"]}',
        b'{"model":"m","input":"","encoding_format":"hex"}',
    ),
    ("stream", b'{"model":"m","input":"x","stream":true}', b'{"model":"m","input":"x","stream":1}'),
    (
        "upstream-cache",
        b'{"model":"m","input":"x","cache":{"no-cache":true}}',
        b'{"model":"m","input":"x","caching":false}',
        b'{"model":"m","input":"x","no_cache":1}',
        b'{"model":"m","input":[{"content":[{"type":"text","text":"x","cache":1}]}]}',
    ),
    ("model", b'{"model":"' + b"m" * 1025 + b'","input":"x"}', b'{"model":"' + b"m" * 1025 + b'","input":""}'),
    ("too-deep", b'{"model":"m","input":"x","user":' + b"[" * 300 + b"]" * 300 + b"}"),
    ("too-deep", b'{"model":"m","input":"x","provider":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}"),
    ("inexact-number", b'{"model":"m","input":"x","dimensions":18446744073709551616}'),
    ("inexact-number", b'{"model":"m","input":"x","provider":{"a":[1e300]}}', b'{"model":"m","input":"x","foo":1e300}'),
    ("duplicate-key", b'{"model":"a","model":"b","input":"x"}', b'{"model":"m","input":"x","input":"x"}'),
    ("duplicate-key", b'{"model":"m","input":"x","provider":{"a":1,"a":1}}', b'{"input":"x","foo":{"a":1,"a":1}}'),
    ("duplicate-key", b'{"model":"a","\\u006dodel":"b","input":"x"}', b'{"model":"m","input":{"a":1,"a":2}}'),
    ("duplicate-key", b'{"model":"a","model":"b","input":"\\u003a"}', b'{"model":"a","model":"b","input":"\\u003A:"}'),
    ("duplicate-key", b'{"model":"m","input":[{"content":[{"type":"text","text":"x","text":"y"}]}]}'),
    ("duplicate-key", b'{"user":"b:","user":"c","model":"m","input":"x"}'),
]


@pytest.mark.parametrize(
    ("reason", "body"),
    [(reason, body) for reason, *bodies in BYPASSES for body in bodies],
    ids=lambda value: repr(value)[:60],
)
def test_requests_that_are_bypassed(reason: str, body: bytes) -> None:
    with pytest.raises(Bypass) as bypass:
        parse(body)
    assert bypass.value.reason == reason


def test_null_in_an_encoding_field_is_absent_for_every_provider() -> None:
    for row in (GENERIC, PROVIDERS["openai"], PROVIDERS["voyage"], PROVIDERS["vllm"]):
        request = parse(
            '{"model":"m","input":"x","encoding_format":null,"embed_dtype":null}'
            if row.fixed
            else '{"model":"m","input":"x","encoding_format":null}',
            row,
        )
        assert (request.kind, request.encoding, request.parameters) == (ItemKind.TEXT, Encoding.FLOAT, {})


@pytest.mark.parametrize("value", ["false", "null"])
def test_the_default_of_stream_changes_nothing(value: str) -> None:
    assert parse(f'{{"model":"m","input":"x","stream":{value}}}').parameters == {}


def test_a_list_of_any_length_is_cached() -> None:
    assert len(parse(orjson.dumps({"model": "m", "input": ["a"] * 3000})).items) == 3000


@pytest.mark.parametrize(
    "change",
    [{"foo": 2}, {"input": ["b", "a"]}, {"input": ["a"]}, {"encoding_format": "base64"}, {"model": "n"}, {"bar": None}],
)
def test_different_whole_bodies_share_no_key(change: dict[str, Any]) -> None:
    def keys_of(fields: dict[str, Any]) -> list[bytes]:
        return keys.derive(parse(orjson.dumps(fields)), url="u", scope=[], vector_headers=[], epoch=0)

    body = {"model": "m", "input": ["a", "b"], "foo": 1}
    assert keys_of(body) == keys_of(dict(reversed(body.items())) | {"user": "u"})
    assert len(set(keys_of(body))) == 2
    assert not set(keys_of(body)) & set(keys_of(body | change))
    assert not set(keys_of(body)) & set(keys_of({"model": "m", "input": ["a", "b"]}))


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
def test_colons_elsewhere_are_not_duplicate_names(body: bytes) -> None:
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
def test_a_body_with_a_duplicate_name_is_never_accepted(pairs: list[tuple[str, Any]], ascii_only: bool) -> None:
    members = [("model", "m"), ("input", "x:y"), *pairs]
    written = ",".join(f"{json.dumps(k)}:{json.dumps(v, ensure_ascii=ascii_only)}" for k, v in members)
    try:
        parse(f"{{{written}}}")
    except Bypass:
        return
    names = [name for name, _ in members]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("value", [[0] * 100_000, [[0]] * 50_000, [{"a": {}}] * 50_000, {"a": [[]] * 50_000}])
def test_members_are_counted_in_short_steps(value: Any) -> None:
    fields = {"model": "m", "user": value}
    members = orjson.dumps(fields).count(b":")
    count = partial(request_body.forbid_duplicate_names, fields=fields, kind=ItemKind.TEXT)
    assert len(list(count(members))) >= 30
    with pytest.raises(Bypass, match="duplicate-key"):
        finish(count(members + 1))


@pytest.mark.parametrize("value", ["x" * 2**20, ["x" * 2**19] * 2, [0] * 2**19])
def test_a_body_with_large_fields_besides_its_input_is_not_taken_apart(value: Any) -> None:
    texts = ["x" * 2**20] * 2
    assert request_body.parse_object(orjson.dumps({"model": "m", "input": texts, "user": "u"}))
    with pytest.raises(Bypass, match="too-complex"):
        request_body.parse_object(orjson.dumps({"model": "m", "input": texts, "user": value}))


def test_a_reduced_body_changes_nothing_but_the_input() -> None:
    request = parse('{"input":["a","b"],"model":"m","user":"ü","dimensions":null,"encoding_format":"base64"}')
    reduced = orjson.loads(embedding_request.reduced_body(request, ["b"]))
    assert reduced == request.fields | {"input": ["b"]}
    assert list(reduced) == list(request.fields)


def test_a_reduced_body_has_no_request_id() -> None:
    request = parse('{"input":["a","b"],"model":"m","request_id":"r","priority":1}', PROVIDERS["vllm"])
    assert orjson.loads(embedding_request.reduced_body(request, ["b"])) == {"input": ["b"], "model": "m", "priority": 1}
    keyed = replace(PROVIDERS["vllm"], key=frozenset({"request_id"}), neutral=frozenset({"priority"}))
    request = parse('{"input":["a","b"],"model":"m","request_id":"r"}', keyed)
    assert orjson.loads(embedding_request.reduced_body(request, ["b"]))["request_id"] == "r"


@pytest.mark.parametrize("pattern", ["Acme/*Fusion*", "acme/*fusion*"])
def test_model_patterns_ignore_case(pattern: str) -> None:
    row = replace(GENERIC, fused_models=(pattern,), multi_vector_models=())
    for model in ("Acme/A-Fusion-2", "ACME/a-fusion-2"):
        doubt = parse(orjson.dumps({"model": model, "input": ["a", "b"]}), row).doubt
        assert doubt is not None
        assert doubt.reason == "cross-item"


def test_an_item_of_many_tokens_is_one_item() -> None:
    assert len(parse(orjson.dumps({"model": "m", "input": [1] * 100_000})).items) == 1


def test_matches_of_long_model_names_are_not_cached() -> None:
    before = provider.matches_model.cache_info().misses
    for length in (1, 10**6):
        provider.matches_model("unheard of " + "x" * length, ("*embed-v4*",))
    assert provider.matches_model.cache_info().misses == before + 1
