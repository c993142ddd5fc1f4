"""A vector of a file is stored as the upstream's own response would have been, or refused."""

from typing import Any, NamedTuple

import numpy as np
import orjson
import pybase64
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from proxy.filling.paid import PaidText
from proxy.filling.paid_vectors import NotAVector, lengths_that_count, vector_of
from proxy.protocol.embedding_response import parse_response
from proxy.protocol.providers import PROVIDERS
from proxy.protocol.vectors import DType, Vector, numbers_json

FLOATS = arrays.arrays(
    np.float32, st.integers(1, 8), elements=st.floats(-10, 10, width=32).filter(lambda value: abs(value) > 1e-30)
)


class _Parsed(NamedTuple):
    packed: DType | None = None
    reads_base64: bool = True


class _Origin(NamedTuple):
    provider: Any


class _Request(NamedTuple):
    origin: _Origin
    parsed: _Parsed = _Parsed()


def stored(embedding: bytes | NDArray[Any], provider: str = "openai", packed: DType | None = None) -> Vector:
    request: Any = _Request(_Origin(PROVIDERS[provider]), _Parsed(packed))
    return vector_of(PaidText(1, "a", embedding), request)


def of_response(embedding: Any, provider: str) -> Vector:
    body = orjson.dumps({"data": [{"index": 0, "embedding": embedding}], "model": "m"})
    (vector,) = parse_response(body, PROVIDERS[provider], items=1).vectors
    assert vector is not None
    return vector


def shortest(values: NDArray[np.float32]) -> bytes:
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)


def base64_of(values: NDArray[np.float32]) -> str:
    return pybase64.b64encode(values.astype("<f4").tobytes()).decode()


@given(FLOATS)
def test_however_a_file_has_a_float32_vector_it_is_what_openai_would_have_sent(values: NDArray[np.float32]) -> None:
    expected = of_response(base64_of(values), "openai")
    assert expected.dtype is DType.FLOAT32_SHORTEST
    widened = values.astype(np.float64)
    for embedding in (
        shortest(values),  # as its text
        orjson.dumps(widened.tolist()),  # as its SDK's numbers, which were base64
        orjson.dumps(base64_of(values)),
        values,
        values.astype(">f4"),
        widened,
    ):
        assert stored(embedding) == expected
    # A client that asks for numbers parses the same as from the upstream's own text.
    assert orjson.loads(numbers_json(expected)) == orjson.loads(shortest(values))


@given(FLOATS)
def test_of_an_upstream_that_writes_float64_texts_the_numbers_stay(values: NDArray[np.float32]) -> None:
    widened = values.astype(np.float64).tolist()
    assert stored(orjson.dumps(widened), "vllm") == of_response(widened, "vllm") == stored(values, "vllm")
    assert stored(shortest(values), "vllm") == of_response(orjson.loads(shortest(values)), "vllm")


@given(st.lists(st.floats(-1, 1).filter(lambda value: abs(value) > 1e-30), min_size=1, max_size=8))
def test_numbers_of_a_generic_upstream_are_stored_as_they_are(numbers: list[float]) -> None:
    assert stored(orjson.dumps(numbers), "generic") == of_response(numbers, "generic")


def test_what_was_computed_is_not_what_openai_wrote() -> None:
    vector = np.array([0.6, 0.8], np.float32)
    rounded = np.round(vector.astype(np.float64) / 3, 12)
    assert stored(orjson.dumps(rounded.tolist()), "generic").dtype is DType.FLOAT64
    with pytest.raises(NotAVector, match="not the numbers of a float32 vector, which is what openai writes"):
        stored(orjson.dumps(rounded.tolist()))
    with pytest.raises(NotAVector, match="not the numbers of a float32 vector"):
        stored(rounded)


@pytest.mark.parametrize(
    "embedding",
    [
        b"[]", b"[null]", b"[0.5, null]", b'["a"]', b"[[0.5]]", b"[0.0, 0.0]", b"[1e39]", b"[true]", b'""', b'"A"',
        b'"AAAAAA=="', b'"AADAfw=="', b"{}", b"[0.5, NaN]", b"[99999999]",
        np.array([0.5, np.nan]), np.array([0.5, np.inf], np.float32), np.zeros(2), np.array([1e39]), np.array([2**25]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("provider", ["openai", "generic"])
def test_what_is_no_vector_is_refused(embedding: Any, provider: str) -> None:
    with pytest.raises(NotAVector) as raised:
        stored(embedding, provider)
    assert len(str(raised.value)) > 10


def test_integers_of_the_type_that_was_asked_for() -> None:
    assert stored(b"[1, -2]", "voyage", DType.INT8_PACKED).dtype is DType.INT8_PACKED
    assert stored(np.array([1, -2], np.int8), "voyage", DType.INT8_PACKED).dtype is DType.INT8_PACKED
    with pytest.raises(NotAVector):
        stored(b"[1, -200]", "voyage", DType.INT8_PACKED)
    with pytest.raises(NotAVector):
        stored(np.array([0.5]), "voyage", DType.INT8_PACKED)


def test_the_length_of_most_counts() -> None:
    assert lengths_that_count([3, 2, 2]) == 2
    assert lengths_that_count([3, 2]) == 3
