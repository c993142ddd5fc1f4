"""Every number that an upstream can write is returned as the same double, in every encoding."""

import struct

import numpy as np
import orjson
import pybase64
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocol import vectors
from proxy.protocol.vectors import DType, InvalidVector, Vector

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
# What float32 can hold at all; a float64 beyond it has no base64 form.
FLOAT64 = st.floats(allow_nan=False, allow_infinity=False, min_value=-3e38, max_value=3e38)


def bits(numbers: list[float]) -> list[bytes]:
    return [struct.pack("<d", number) for number in numbers]


def shortest(value: float) -> float:
    return float(str(np.float32(value)))


@given(st.lists(FLOAT32, min_size=1).filter(any))
def test_a_widened_float32_keeps_its_bits_and_is_stored_in_four_bytes(numbers: list[float]) -> None:
    vector = vectors.from_numbers(orjson.loads(orjson.dumps(numbers)))
    assert vector.dtype is DType.FLOAT32
    assert vector.payload == struct.pack(f"<{len(numbers)}f", *numbers)
    assert bits(orjson.loads(vectors.numbers_json(vector))) == bits(numbers)


@given(st.lists(FLOAT32.map(shortest), min_size=1).filter(lambda values: bool(np.array(values, np.float32).any())))
def test_shortest_float32_text_keeps_its_doubles_and_is_stored_in_four_bytes(numbers: list[float]) -> None:
    vector = vectors.from_numbers(numbers)
    assert vector.dtype in (DType.FLOAT32, DType.FLOAT32_SHORTEST)
    assert len(vector.payload) == 4 * len(numbers)
    assert bits(orjson.loads(vectors.numbers_json(vector))) == bits(numbers)


def test_a_shortest_text_halfway_between_two_float32_keeps_its_value() -> None:
    numbers = np.array([0x15AE43FD, 0x3DCCCCCD], np.uint32).view(np.float32)  # 7.038531e-26, 0.1
    texts = [shortest(number) for number in numbers]
    assert np.float32(texts[0]) != numbers[0]
    vector = vectors.from_numbers(texts)
    assert vector == Vector(DType.FLOAT32_SHORTEST, numbers.tobytes())
    assert bits(orjson.loads(vectors.numbers_json(vector))) == bits(texts)


@given(st.lists(FLOAT64, min_size=1).filter(lambda values: bool(np.array(values, np.float32).any())))
def test_any_float64_keeps_its_bits(numbers: list[float]) -> None:
    vector = vectors.from_numbers(numbers)
    assert bits(orjson.loads(vectors.numbers_json(vector))) == bits(numbers)


@given(st.lists(st.integers(-(2**24), 2**24), min_size=1).filter(any))
def test_integers_stay_integers_in_the_smallest_type_that_holds_them(numbers: list[int]) -> None:
    vector = vectors.from_numbers(numbers)
    back = orjson.loads(vectors.numbers_json(vector))
    assert back == numbers
    assert all(type(number) is int for number in back)
    if all(-128 <= number <= 127 for number in numbers):
        assert len(vector.payload) == len(numbers)
    decoded = np.frombuffer(pybase64.b64decode(vectors.base64_text(vector.dtype, vector.payload)), "<f4")
    assert decoded.tolist() == numbers


@given(st.lists(FLOAT32, min_size=1).filter(any))
def test_base64_is_kept_to_the_byte(numbers: list[float]) -> None:
    text = pybase64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    vector = vectors.from_base64(text)
    assert vectors.base64_text(vector.dtype, vector.payload).decode() == text
    assert bits(orjson.loads(vectors.numbers_json(vector))) == bits(numbers)
    assert vectors.base64_length(vector.dtype, vector.dimensions) == len(text)


def test_a_mixed_array_of_integers_and_floats_is_floats() -> None:
    vector = vectors.from_numbers([1, 0.5, 0])
    assert vector == Vector(DType.FLOAT32, struct.pack("<3f", 1, 0.5, 0))


@pytest.mark.parametrize("dtype", [DType.INT8_PACKED, DType.UINT8_PACKED])
def test_an_integer_type_written_as_floats_stays_floats_where_that_is_how_it_comes(dtype: DType) -> None:
    numbers = [0.0, 78.0, 127.0]
    assert vectors.numbers_json(vectors.from_numbers(numbers, dtype, as_floats=True)) == b"[0.0,78.0,127.0]"
    integers = [0, 78, 127]
    assert vectors.from_numbers(integers, dtype, as_floats=True) == Vector(dtype, bytes(integers))
    for wrong in ([0.5, 1.0], [256.0, 1.0], [-129.0, 1.0], [1, 2.0]):
        with pytest.raises(InvalidVector):
            vectors.from_numbers(wrong, dtype, as_floats=True)
    with pytest.raises(InvalidVector):
        vectors.from_numbers(numbers, dtype)


def test_negative_zero_keeps_its_sign() -> None:
    assert vectors.numbers_json(vectors.from_numbers([-0.0, 1.0])) == b"[-0.0,1.0]"


@pytest.mark.parametrize(
    "numbers",
    [
        [],
        [True, False],
        ["1"],
        [None],
        [[1.0]],
        [0, 0],
        [0.0, -0.0],
        [1e-60, 0.0],  # zero in every form a client could decode
        [1e39, 1.0],
        [2**24 + 1],
        [-(2**63) - 1],
    ],
)
def test_an_array_that_is_no_vector_is_refused(numbers: list[object]) -> None:
    with pytest.raises(InvalidVector):
        vectors.from_numbers(numbers)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AAAA",
        "not base64!",
        "AACAPw",  # no padding
        "AACAPw==\n",
        pybase64.b64encode(struct.pack("<2f", 1, float("nan"))).decode(),
        pybase64.b64encode(struct.pack("<2f", 1, float("-inf"))).decode(),
        pybase64.b64encode(struct.pack("<2f", 0, 0)).decode(),
        pybase64.b64encode(b"12345").decode(),
    ],
)
def test_base64_that_is_no_vector_is_refused(text: str) -> None:
    with pytest.raises(InvalidVector):
        vectors.from_base64(text)
