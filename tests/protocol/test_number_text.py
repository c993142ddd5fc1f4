"""Whichever library writes them, the texts read back as the same numbers."""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from proxy.protocol import number_text

HAS_SSRJSON = importlib.util.find_spec("ssrjson") is not None
Write = Callable[[NDArray[Any]], bytes]
WRITERS = [
    pytest.param(number_text.by_orjson, id="orjson"),
    pytest.param(
        number_text.number_text, id="ssrjson", marks=pytest.mark.skipif(not HAS_SSRJSON, reason="the extra `fast`")
    ),
]
# Around each power of two, where float32 values are spaced differently on both sides; and powers of ten.
_MANTISSAS = np.array([0, 1, 2, 2**22 - 1, 2**22, 2**23 - 2, 2**23 - 1], np.uint32)
EDGES = (np.arange(255, dtype=np.uint32)[:, None] * 2**23 + _MANTISSAS).reshape(-1).view(np.float32)
POWERS = np.array([digits * 10.0**power for digits in range(1, 1000) for power in range(-12, 7)])


def read(text: bytes) -> NDArray[np.float64]:
    numbers = orjson.loads(text)
    assert {type(number) for number in numbers} == {float}
    return np.array(numbers, np.float64)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("values", [EDGES, -EDGES, POWERS.astype(np.float32)], ids=["edges", "negative", "powers"])
def test_a_float32_is_the_shortest_text_that_reads_back_as_it(write: Write, values: NDArray[np.float32]) -> None:
    shortest = read(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))
    assert read(write(values)).tobytes() == shortest.tobytes()
    assert read(write(values)).astype(np.float32).tobytes() == values.tobytes()


@pytest.mark.parametrize("write", WRITERS)
@given(words=st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_any_float32_reads_back_as_the_same_double(write: Write, words: list[int]) -> None:
    values = np.array(words, np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    if len(values):
        assert read(write(values)).tobytes() == read(number_text.by_orjson(values)).tobytes()


@pytest.mark.parametrize("write", WRITERS)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_any_double_reads_back_as_itself(write: Write, numbers: list[float]) -> None:
    values = np.array(numbers)
    assert read(write(values)).tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i4", "<i8"])
def test_integers_stay_integers(dtype: str) -> None:
    assert number_text.number_text(np.array([0, 1, 127], dtype)) == b"[0,1,127]"


def test_without_ssrjson_there_is_orjson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_text, "_floats_by_ssrjson", None)
    assert number_text.number_text(np.array([0.00001], np.float32)) == b"[0.00001]"
