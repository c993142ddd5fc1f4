import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from proxy.protocol.shortest_floats import are_shortest
from tests.support.profiles import IS_SLOW_PROFILE

_OF_BITS = st.integers(0, 2**32 - 1).map(lambda bits: np.array([bits], np.uint32).view(np.float32)[0])
_USUAL = st.floats(min_value=-16.0, max_value=16.0, width=32).map(np.float32)
_FLOATS = st.one_of(_OF_BITS, _USUAL, st.integers(-40, 23).map(lambda exponent: np.float32(2.0**exponent)))


def parsed(narrow: NDArray[np.float32]) -> NDArray[np.float64]:
    """What clients parse from the shortest texts."""
    return np.array(orjson.loads(orjson.dumps(narrow, option=orjson.OPT_SERIALIZE_NUMPY)), np.float64)


@settings(max_examples=100_000 if IS_SLOW_PROFILE else 600)
@given(_FLOATS.filter(np.isfinite), st.integers(1, 17))
def test_no_other_decimal_that_rounds_to_a_float32_is_taken_for_its_shortest(number: np.float32, digits: int) -> None:
    narrow = np.array([number])
    wide = np.array([float(f"{number:.{digits - 1}e}")])
    with np.errstate(over="ignore"):
        rounds_to_it = wide.astype(np.float32) == narrow
    if rounds_to_it.all() and are_shortest(wide, narrow):
        assert (wide == parsed(narrow)).all()


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_the_shortest_texts_of_usual_vectors_are_known(seed: int) -> None:
    narrow = (np.random.default_rng(seed).standard_normal((2, 64)) / 8).astype(np.float32)
    wide = parsed(narrow.reshape(-1)).reshape(narrow.shape)
    # One in thousands is too close to a bound.
    known = [are_shortest(wide[:, i], narrow[:, i]) for i in range(64)]
    assert sum(known) >= 62


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_the_shortest_texts_of_numbers_with_few_digits_are_known(seed: int, digits: int) -> None:
    wide = np.round(np.random.default_rng(seed).uniform(0.1, 1.0, 64), digits)
    narrow = wide.astype(np.float32)
    expected = parsed(narrow) == wide  # some of eight digits are not the shortest
    known = np.array([are_shortest(wide[i], narrow[i]) for i in range(64)])
    assert not (known & ~expected).any()
    assert (known | ~expected).sum() >= 62


@pytest.mark.parametrize("number", [0.1, -0.25, 1e-9, 16777215.0, 2.0**-10, 0.3000001])
def test_a_number_is_told_from_its_neighbor(number: float) -> None:
    narrow = np.array([number], np.float32)
    assert are_shortest(parsed(narrow), narrow)
    assert not are_shortest(np.nextafter(parsed(narrow), np.inf), narrow)


@pytest.mark.parametrize("number", [0.0, 1e-30, 1e30])
def test_numbers_out_of_range_are_not_known(number: float) -> None:
    narrow = np.array([number], np.float32)
    assert not are_shortest(parsed(narrow), narrow)
