"""Keys are equal if and only if the identities are equal."""

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proxy.protocol import embedding_request, keys, request_body
from proxy.protocol.header_kinds import Fields
from proxy.protocol.provider import InputFormat
from proxy.protocol.providers import GENERIC

URL = "https://api.example.com/v1/embeddings"
TEXT = st.text(min_size=1)
TOKENS = st.lists(st.integers(0, 2**53), min_size=1, max_size=8)
CONTENT = st.fixed_dictionaries(
    {
        "content": st.lists(
            st.one_of(
                st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}),
                st.fixed_dictionaries(
                    {
                        "type": st.just("image_url"),
                        "image_url": st.fixed_dictionaries({"url": st.text().map("data:".__add__)}),
                    }
                ),
            ),
            min_size=1,
            max_size=3,
        )
    }
)
ITEM = st.one_of(TEXT, TOKENS, CONTENT)
JSON_SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-1000, 1000), st.floats(-10, 10), st.text())
PARAMETERS = st.dictionaries(
    st.sampled_from(sorted(GENERIC.key - {"modality"})),
    st.one_of(JSON_SCALAR, st.dictionaries(st.text(), JSON_SCALAR, max_size=3)),
    max_size=3,
)
HEADERS = st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), max_size=3)


@st.composite
def identities(draw: st.DrawFn) -> dict[str, Any]:
    """Everything that can change a vector; drawn from small sets, so that near misses are common."""
    return {
        "item": draw(ITEM),
        "model": draw(st.sampled_from(["m", "mm", "m-query", "m-passage"])),
        "parameters": draw(PARAMETERS),
        "url": draw(st.sampled_from([URL, URL + "?a=1", "https://other.example.com/v1/embeddings"])),
        "credentials": draw(HEADERS),
        "vector_headers": draw(HEADERS),
    }


def body_of(model: str, items: list[Any], parameters: dict[str, Any], **fields: Any) -> bytes:
    return orjson.dumps({"model": model, "input": items, **parameters, **fields})


def derive(
    body: bytes, url: str = URL, credentials: Fields | None = None, vector_headers: Fields | None = None
) -> list[bytes]:
    request = embedding_request.parse_request(
        body, request_body.parse_object(body), replace(GENERIC, inputs=frozenset(InputFormat))
    )
    return keys.derive(request, url=url, scope=credentials or [], vector_headers=vector_headers or [], epoch=0)


def key_of(identity: dict[str, Any]) -> bytes:
    body = body_of(identity["model"], [identity["item"]], identity["parameters"])
    return derive(body, identity["url"], identity["credentials"], identity["vector_headers"])[0]


def told_apart(identity: dict[str, Any]) -> str:
    """Python says 1 == 1.0 == True; JSON doesn't."""
    return orjson.dumps(identity, option=orjson.OPT_SORT_KEYS).decode()


@given(identities(), identities())
def test_different_identities_have_different_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    assume(told_apart(one) != told_apart(other))
    assert key_of(one) != key_of(other)


@given(identities(), st.data())
def test_changing_any_one_part_changes_the_key(identity: dict[str, Any], data: st.DataObject) -> None:
    other = data.draw(identities())
    part = data.draw(st.sampled_from(sorted(identity)))
    changed = identity | {part: other[part]}
    assume(told_apart(changed) != told_apart(identity))
    assert key_of(changed) != key_of(identity)


@given(
    st.sampled_from([TEXT, TOKENS, CONTENT]).flatmap(lambda kind: st.lists(kind, min_size=1, max_size=6)), PARAMETERS
)
def test_a_batch_has_the_keys_of_its_items_alone(items: list[Any], parameters: dict[str, Any]) -> None:
    batched = derive(body_of("m", items, parameters))
    assert batched == [derive(body_of("m", [item], parameters))[0] for item in items]


@given(identities(), st.randoms(use_true_random=False))
def test_neither_the_order_of_keys_nor_spacing_nor_escapes_matter(identity: dict[str, Any], random: Any) -> None:
    fields = orjson.loads(body_of(identity["model"], [identity["item"]], identity["parameters"]))
    names = list(fields)
    random.shuffle(names)
    shuffled = {name: fields[name] for name in names}
    written = json.dumps(shuffled, ensure_ascii=True, indent=2).encode()
    assert derive(written) == derive(orjson.dumps(fields))


@pytest.mark.parametrize("neutral", [{"user": "u"}, {"encoding_format": "base64"}, {"encoding_format": "float"}])
def test_neutral_fields_and_the_encoding_stay_out(neutral: dict[str, Any]) -> None:
    assert derive(body_of("m", ["x"], neutral)) == derive(body_of("m", ["x"], {}))


def test_a_text_alone_is_a_list_of_one() -> None:
    assert derive(b'{"model":"m","input":"x"}') == derive(b'{"model":"m","input":["x"]}')


def test_tokens_alone_are_one_item() -> None:
    assert derive(b'{"model":"m","input":[1,2,3]}') == derive(b'{"model":"m","input":[[1,2,3]]}')


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('"1"', "[1]"),
        ('["1"]', "[[1]]"),
        ('" x"', '"x"'),
        ('"x"', '"x\\n"'),
        ('"X"', '"x"'),
        ('"\\u00e9"', '"e\\u0301"'),
        ("[1,2]", "[[2,1]]"),
        ('"t"', '"i"'),
    ],
)
def test_inputs_that_only_look_alike_have_different_keys(one: str, other: str) -> None:
    assert derive(f'{{"model":"m","input":{one}}}'.encode()) != derive(f'{{"model":"m","input":{other}}}'.encode())


def test_texts_do_not_run_together() -> None:
    assert not set(derive(b'{"model":"m","input":["ab","c"]}')) & set(derive(b'{"model":"m","input":["a","bc"]}'))


def test_dimensions_absent_null_native_and_smaller_are_four_keys() -> None:
    forms: list[dict[str, Any]] = [{}, {"dimensions": None}, {"dimensions": 1536}, {"dimensions": 256}]
    assert len({derive(body_of("m", ["x"], form))[0] for form in forms}) == 4


def test_an_escaped_letter_is_the_letter() -> None:
    assert derive(b'{"model":"m","input":"\\u00e9"}') == derive('{"model":"m","input":"é"}'.encode())


@given(st.lists(st.integers(1, 3 * keys._STEP_BYTES), min_size=1, max_size=4), st.sampled_from("aé€𝄞"))
@settings(max_examples=20)
def test_a_text_that_takes_several_steps_has_the_key_of_all_of_it(lengths: list[int], letter: str) -> None:
    texts = [letter * length for length in lengths]
    body = body_of("m", list(texts), {})
    request = embedding_request.parse_request(body, request_body.parse_object(body), GENERIC)
    identity: dict[str, Any] = {"url": URL, "scope": [], "vector_headers": [], "epoch": 0}
    steps = len(list(keys.derive_in_steps(request, **identity)))
    assert steps >= sum(len(text.encode()) for text in texts) // (5 * keys._STEP_BYTES)
    assert keys.derive(request, **identity) == keys.TextKeys(request, **identity).of(texts)


def test_header_bytes_that_are_not_utf8_can_be_in_an_identity() -> None:
    body = body_of("m", ["x"], {})
    assert derive(body, credentials=[("authorization", "\udcff")]) != derive(
        body, credentials=[("authorization", "\udcfe")]
    )


def test_the_key_is_pinned() -> None:
    """A change here orphans every entry that anyone has stored: raise the schema number and say so in the changelog."""
    key = derive(b'{"model":"m","input":"hello","dimensions":8}', credentials=[("authorization", "Bearer k")])[0]
    assert key.hex() == "35a269aba2e15127cfbfe9546248e9ce2202b8d497a0f69d1b67f3e8ff412ae8"


@pytest.mark.parametrize("change", [{"user": "v"}, {"encoding_format": "base64"}, {"dimensions": 4}, {"model": "n"}])
def test_requests_of_one_group_differ_in_nothing_but_their_items(change: dict[str, Any]) -> None:
    def group(fields: dict[str, Any], credentials: Fields, page: str | None = None) -> bytes:
        request = embedding_request.parse_request(orjson.dumps(fields), fields, GENERIC)
        return keys.group(request, url=URL, credentials=credentials, vector_headers=[], page=page)

    fields: dict[str, Any] = {"model": "m", "input": ["a"], "user": "u"}
    alike = {"user": "u", "input": ["b", "c"], "model": "m"}
    assert group(fields, [("k", "1")]) == group(alike, [("k", "1")])
    assert group(fields, [("k", "1")]) != group(fields, [("k", "2")])
    assert group(fields, [("k", "1")]) != group(fields | change, [("k", "1")])
    assert group(fields, [("k", "1")]) != group(fields, [("k", "1")], "https://app.example.com")


def test_epoch_zero_has_the_keys_that_there_were_before_epochs() -> None:
    body = body_of("m", ["hello"], {"dimensions": 8})
    key = "9e42511896f2be8259d79e30bcd129477a21de8d2eebce92151691ad71bee663"
    assert derive(body, credentials=[("authorization", "Bearer k")], vector_headers=[("x-a", "b")])[0].hex() == key


@given(identities(), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_epochs_have_no_key_in_common(identity: dict[str, Any], one: int, other: int) -> None:
    body = body_of(identity["model"], [identity["item"]], identity["parameters"])
    request = embedding_request.parse_request(
        body, request_body.parse_object(body), replace(GENERIC, inputs=frozenset(InputFormat))
    )
    found = [
        keys.derive(
            request,
            url=identity["url"],
            scope=identity["credentials"],
            vector_headers=identity["vector_headers"],
            epoch=epoch,
        )
        for epoch in (one, other)
    ]
    assert (found[0] == found[1]) is (one == other)
    if one == 0:
        assert found[0] == [key_of(identity)]
