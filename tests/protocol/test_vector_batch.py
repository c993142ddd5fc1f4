"""A response parsed at once gives what each vector alone gives, and the same verdict on the response."""

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pybase64
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.protocol import embedding_response, vector_batch, vectors
from proxy.protocol.embedding_response import EmbeddingResponse, InvalidEmbeddingResponse
from proxy.protocol.providers import GENERIC
from proxy.protocol.vectors import DType
from proxy.steps import Steps
from tests.support.profiles import IS_SLOW_PROFILE

_WIDE = st.floats(allow_nan=False, allow_infinity=False)
_NARROW = st.floats(width=32, allow_nan=False, allow_infinity=False)
_SHORTEST = _NARROW.map(lambda number: float(str(np.float32(number))))
_NUMBERS = st.one_of(_NARROW, _SHORTEST, _WIDE, st.integers(-(2**65), 2**65), st.just(-0.0))
_ARRAYS = st.one_of(*(st.lists(numbers, min_size=1, max_size=3) for numbers in (_NARROW, _SHORTEST, _WIDE, _NUMBERS)))
_BASE64 = st.binary(min_size=0, max_size=12).map(lambda data: pybase64.b64encode(data).decode())
_ODD = st.sampled_from(
    [None, True, 0, 1, [], [[1.0]], ["1.0"], {"embedding": [1.0]}, "====", 'a"b', [None], [1.0, True]]
)
_EMBEDDINGS = st.one_of(
    st.lists(_ARRAYS, max_size=3), st.lists(_BASE64, max_size=3), st.lists(_ARRAYS | _BASE64 | _ODD)
)

Parse = Callable[[bytes, int], EmbeddingResponse]


def cut_nothing(_body: bytes, _items: int) -> Steps[None]:
    yield from ()


def parse_singly(body: bytes, items: int) -> EmbeddingResponse:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_batch, "cut_texts", cut_nothing)
        return embedding_response.parse_response(body, GENERIC, items=items)


def outcome(parse: Parse, body: bytes, items: int) -> Any:
    try:
        parsed = parse(body, items)
    except InvalidEmbeddingResponse as error:
        return error.reason, error.embedding_text
    return parsed.vectors, parsed.model, parsed.usage, parsed.extra_fields, parsed.unusable


def parse_at_once(body: bytes, items: int) -> EmbeddingResponse:
    return embedding_response.parse_response(body, GENERIC, items=items)


def response(embeddings: list[Any], order: list[int]) -> bytes:
    data = [{"object": "embedding", "index": i, "embedding": embeddings[i]} for i in order]
    return orjson.dumps({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 3}})


@settings(max_examples=10_000 if IS_SLOW_PROFILE else 500)
@given(data=st.data(), items=st.integers(1, 3))
def test_the_outcome_is_that_of_each_alone(data: st.DataObject, items: int) -> None:
    embeddings = data.draw(_EMBEDDINGS)
    try:
        body = response(embeddings, data.draw(st.permutations(range(len(embeddings)))))
    except orjson.JSONEncodeError:  # integers that it does not write
        return
    assert outcome(parse_at_once, body, items) == outcome(parse_singly, body, items)


_DATUM = b'{"index":0,"embedding":[0.5,1.5]}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[{"index":0,"embedding":[0.5,1.5],"embedding":[2.5]}]}',
        b'{"data":[{"index":0,"embedding":[0.5,1.5],"embedding" :[2.5]}]}',
        b'{"data":[{"index":0,"embedding":[0.5,1.5],"\\u0065mbedding":[2.5]}]}',
        b'{"data":[{"index":0,"x":{"embedding":[0.5,1.5]},"embedding" :0}]}',
        b'{"data":[{"index":0,"x":"\\"embedding\\":[0.5]","embedding":[1.5]}]}',
        b'{"x":{"embedding":[0.5,1.5]},"data":[{"index":0,"embedding" :[2.5]}]}',
        b'{"x":{"embedding":[0.5,1.5]},"data":[0]}',
        b'{"data":[' + _DATUM + b'],"data":[' + _DATUM + b"]}",
        b'{"data":[' + _DATUM + b"]} x",
        b'{"data":[' + _DATUM + b"]",
        b'\xff{"data":[' + _DATUM + b"]}",
        b'{"data":[' + _DATUM + b'],"model":"\xff"}',
        b'{"data":[{"index":0,"embedding":[0.5,NaN]}]}',
        b'{"data":[{"index":0,"embedding":[0.5,1e400]}]}',
        b'{"data":[{"index":0,"embedding":[0.5,Infinity]}]}',
        b'{"data":[{"index":0,"embedding":[0.5,1.]}]}',
        b'{"data":[{"index":0,"embedding":[0.5,]}]}',
        b'{"data":[{"index":0,"embedding":[0.5,01.5]}]}',
        b'{"data":[{"index":0,"embedding":[9007199254740993.0,1.5]}]}',
        b'{"data":[{"index":0,"embedding":[9007199254740993,1.5]}]}',
        b'{"data":[{"index":0,"embedding":[12345678901234567890123,1.5]}]}',
        b'{"data":[{"index":0,"embedding":' + b"[" * 1025 + b"0.5]}]}",
        b'{"data":[{"index":0,"embedding":[1e-5,1.5]}]}',
        b'{"data":[{"index":0,"embedding":[1e5,1.5]}]}',
        b'{"data":[{"index":0,"embedding":[-0,1.5]}]}',
        b'{"data":[{"index":0,"embedding":[-0.0,1.5]}]}',
        b'{"data":[{"index":0,"embedding":[0.0,0.0]}]}',
        b'{"data":[{"index":0,"embedding": [ 0.5 ,\t1.5 ] }]}',
        b'{"data":[{"index":0,"embedding":"AACAPwAAgD8="}]}',
        b'{"data":[{"index":0,"embedding":"AACAPwAAgD9="}]}',
        b'{"data":[{"index":0,"embedding":"AACAPw\\/AAgD8="}]}',
        b'{"data":[{"index":0,"embedding":"AADAfw=="}]}',
        b'{"data":[{"index":0,"embedding":"AAAAAA=="}]}',
        b'{"data":[{"index":0,"embedding":"',
        b'{"data":[{"index":0,"embedding":[',
        b'{"data":[{"index":0,"embedding":',
    ],
)
def test_unusual_responses_have_the_outcome_of_each_alone(body: bytes) -> None:
    assert outcome(parse_at_once, body, 1) == outcome(parse_singly, body, 1)


def test_a_vector_of_float32_values_is_stored_as_one_beside_vectors_of_shortest_texts() -> None:
    body = response([[0.5], [1.0996094]], [0, 1])
    assert [vector.dtype for vector in parse_at_once(body, 2).vectors if vector] == [
        DType.FLOAT32,
        DType.FLOAT32_SHORTEST,
    ]
    assert outcome(parse_at_once, body, 2) == outcome(parse_singly, body, 2)


@given(st.lists(_SHORTEST | _NARROW | _WIDE, min_size=1, max_size=4).filter(any))
def test_the_text_of_numbers_is_kept_as_it_was_written(numbers: list[float]) -> None:
    try:
        parsed = parse_at_once(response([numbers], [0]), 1)
    except InvalidEmbeddingResponse:
        return
    assert [orjson.loads(text) for text in parsed.texts] in ([], [numbers])
    assert [orjson.loads(vectors.numbers_json(vector)) for vector in parsed.vectors if vector] == [numbers]


def test_numbers_that_were_written_at_great_length_are_written_anew() -> None:
    body = b'{"data":[{"index":0,"embedding":[0.5%b,1.5]}]}' % (b"0" * 100)
    assert parse_at_once(body, 1).texts == []
