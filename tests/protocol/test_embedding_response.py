import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocol import embedding_response, error_body
from proxy.protocol.embedding_response import InvalidEmbeddingResponse
from proxy.protocol.providers import GENERIC

DATUM = {"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}
ANSWER = {"object": "list", "data": [DATUM], "model": "m", "usage": {"prompt_tokens": 3, "total_tokens": 3}}


@pytest.fixture(params=["whole", "parts"], autouse=True)
def every_answer_is_small_or_large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "parts":
        monkeypatch.setattr("proxy.protocol.json_parts.LARGE_BYTES", 0)


def answer(**changes: Any) -> bytes:
    return orjson.dumps({**ANSWER, **changes})


def data(*members: dict[str, Any]) -> list[dict[str, Any]]:
    return [DATUM | member for member in members]


def test_vectors_go_by_index_not_by_position() -> None:
    body = answer(data=data({"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}))
    parsed = embedding_response.parse_response(body, GENERIC, items=2)
    assert [vector and vector.array().tolist() for vector in parsed.vectors] == [[1.0], [2.0]]


def test_without_any_index_the_position_counts() -> None:
    body = answer(data=[{"embedding": [1.0]}, {"embedding": [2.0]}])
    parsed = embedding_response.parse_response(body, GENERIC, items=2)
    assert [vector and vector.array().tolist() for vector in parsed.vectors] == [[1.0], [2.0]]


def test_a_bare_data_array_is_enough() -> None:
    parsed = embedding_response.parse_response(orjson.dumps({"data": [DATUM]}), GENERIC, items=1)
    assert parsed.model == ""
    assert parsed.usage == {"prompt_tokens": 0, "total_tokens": 0}


def test_an_error_that_is_null_is_ignored() -> None:
    assert embedding_response.parse_response(answer(error=None), GENERIC, items=1).model == "m"


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
    assert embedding_response.parse_response(answer(usage=usage), GENERIC, items=1).usage == expected


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
        ("mixed-dimensions", answer(data=data({"index": 0}, {"index": 1, "embedding": [1.0]}))),
        ("no-embedding", answer(data=data({"index": 0, "embedding": None}, {"index": 1, "embedding": None}))),
        ("vector", answer(data=data({"index": 0, "embedding": [0.0]}, {"index": 1, "embedding": "%"}))),
        ("further-fields", answer(data=data({"index": 0, "sparse": {"7": 0.5}}, {"index": 1}))),
        ("not-json", answer().replace(b"0.5", b"NaN")),
        ("not-json", answer().replace(b"0.5", b"1e999")),
    ],
)
def test_invalid_responses(reason: str, body: bytes) -> None:
    with pytest.raises(InvalidEmbeddingResponse) as invalid:
        embedding_response.parse_response(body, GENERIC, items=2)
    assert invalid.value.reason == reason


@pytest.mark.parametrize(
    ("reason", "embedding"),
    [("no-embedding", None), ("no-embedding", 1), ("vector", [0.0, 0.0]), ("vector", [[1.0], [2.0]]), ("vector", "%")],
)
def test_an_unusable_vector_does_not_affect_the_others(reason: str, embedding: Any) -> None:
    body = answer(data=data({"index": 0}, {"index": 1, "embedding": embedding}))
    parsed = embedding_response.parse_response(body, GENERIC, items=2)
    assert [vector and vector.array().tolist() for vector in parsed.vectors] == [[0.5, 1.0], None]
    assert parsed.unusable == reason


@pytest.mark.parametrize("embedding", [None, [0.0, 0.0], "%", {}])
def test_the_value_in_place_of_the_only_embedding_is_kept(embedding: Any) -> None:
    with pytest.raises(InvalidEmbeddingResponse) as invalid:
        embedding_response.parse_response(answer(data=data({"embedding": embedding})), GENERIC, items=1)
    assert invalid.value.embedding_text == orjson.dumps(embedding)


def test_a_further_field_that_is_null_is_ignored() -> None:
    assert embedding_response.parse_response(answer(data=data({"weights": None})), GENERIC, items=1).unusable is None


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=50), st.text(), st.integers(0, 2**40))
def test_assembled_responses_have_the_fields_that_openai_documents(numbers: list[int], model: str, tokens: int) -> None:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    texts = [b"[%d]" % number for number in numbers]
    body = b"".join(embedding_response.parts(texts, embedding_response.ending(model, usage, {})))
    extra_fields = {"id": model, "created": {"at": tokens}}
    longer = embedding_response.stream_parts(
        iter(texts), len(texts), embedding_response.ending(model, usage, extra_fields)
    )
    assert orjson.loads(b"".join(longer)) == orjson.loads(body) | extra_fields
    assert orjson.loads(body) == {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": [number]} for i, number in enumerate(numbers)],
        "model": model,
        "usage": usage,
    }


@given(st.lists(st.binary(min_size=1), min_size=1, max_size=50))
def test_base64_is_quoted_and_its_length_is_known(embeddings: list[bytes]) -> None:
    end = embedding_response.ending("m", {}, {})
    texts = [base64.b64encode(embedding) for embedding in embeddings]
    body = b"".join(embedding_response.parts(texts, end, are_base64=True))
    quoted = [b'"%b"' % text for text in texts]
    assert body == b"".join(embedding_response.parts(quoted, end))
    assert body == b"".join(embedding_response.stream_parts(iter(texts), len(texts), end, are_base64=True))
    assert embedding_response.base64_length(list(map(len, texts)), end) == len(body)


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
    assert error_body.error_status(body) == status
