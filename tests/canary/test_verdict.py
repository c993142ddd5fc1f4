"""Verdicts by what a model did: pure, and so without a store or an upstream."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from proxy.canary import measurement
from proxy.canary.check_bodies import TEXTS
from proxy.canary.measurement import Measurement, changed_numbers, cosine_distance
from proxy.canary.verdict import compare, is_settled
from proxy.labels import CanaryVerdict
from proxy.protocol.vectors import DType, Vector

RANDOM = np.random.default_rng(7)
BASE = RANDOM.standard_normal((len(TEXTS), 256))
OTHER = RANDOM.standard_normal((len(TEXTS), 256))


def packed(rows: NDArray[np.float64]) -> tuple[Vector, ...]:
    return tuple(Vector(DType.FLOAT32, row.astype("<f4").tobytes()) for row in rows)


def measured(
    alone: NDArray[np.float64] = BASE, again: NDArray[np.float64] | None = None, model: str = "m"
) -> Measurement:
    return Measurement(model=model, alone=packed(alone), again=packed(alone if again is None else again))


def moved(distance: float, rows: NDArray[np.float64] = BASE) -> NDArray[np.float64]:
    """``rows``, each turned so far that its cosine distance to what it was is ``distance``."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    side = OTHER - (OTHER * unit).sum(axis=1, keepdims=True) * unit
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    cosine = 1 - distance
    turned: NDArray[np.float64] = cosine * unit + np.sqrt(1 - cosine**2) * side
    return turned


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (measured(), CanaryVerdict.SAME_BITS),
        (measured(BASE * (1 + 1e-7)), CanaryVerdict.LAST_BITS),
        (measured(moved(9e-5)), CanaryVerdict.LAST_BITS),
        (measured(moved(1.1e-4)), CanaryVerdict.DRIFTED),
        (measured(OTHER), CanaryVerdict.DRIFTED),
        (measured(BASE, OTHER), CanaryVerdict.DRIFTED),  # some servers have other weights, and it is no noise
        (measured(BASE[:, :128]), CanaryVerdict.DIMENSIONS),
        (measured(BASE, BASE[:, :128]), CanaryVerdict.DIMENSIONS),
        (measured(model="n"), CanaryVerdict.OTHER_MODEL),
        (measured(OTHER, model="n"), CanaryVerdict.OTHER_MODEL),
    ],
)
def test_a_model_without_noise(now: Measurement, verdict: CanaryVerdict) -> None:
    assert compare(measured(), now).verdict is verdict


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (measured(BASE, moved(3e-4)), CanaryVerdict.SAME_BITS),
        (measured(moved(3e-4), BASE), CanaryVerdict.WITHIN_NOISE),
        (measured(moved(5e-4)), CanaryVerdict.WITHIN_NOISE),
        (measured(moved(2.5e-3)), CanaryVerdict.DRIFTED),
    ],
)
def test_a_model_with_noise(now: Measurement, verdict: CanaryVerdict) -> None:
    assert compare(measured(BASE, moved(3e-4)), now).verdict is verdict


def test_noise_that_was_seen_before_counts() -> None:
    assert compare(measured(), measured(moved(1e-5)), known_noise=1e-5).verdict is CanaryVerdict.WITHIN_NOISE
    assert compare(measured(), measured(moved(1e-5))).verdict is CanaryVerdict.LAST_BITS


def test_noise_that_is_too_large_excuses_nothing() -> None:
    """While an upstream replaces its servers, two responses may be of two models."""
    comparison = compare(measured(), measured(BASE, OTHER))
    assert comparison.noise > 0.5
    assert comparison.plausible_noise == 0.0
    assert comparison.is_moved
    assert compare(measured(), measured(moved(0.1)), known_noise=0.5).is_moved


def test_the_numbers_of_a_comparison() -> None:
    now = replace(measured(), alone=packed(np.vstack([BASE[:1] * -1, BASE[1:]])))
    comparison = compare(measured(), now)
    assert comparison.distance == pytest.approx(2.0)
    assert comparison.changed == pytest.approx(1 / (2 * len(TEXTS)))


@pytest.mark.parametrize(
    ("now", "is_moved"),
    [
        (measured(), False),
        (measured(BASE * (1 + 1e-7)), False),
        (measured(model="n"), False),  # the same weights under another name
        (measured(OTHER, model="n"), True),
        (measured(OTHER), True),
        (measured(BASE[:, :128]), True),
    ],
)
def test_only_other_vectors_are_a_move(now: Measurement, is_moved: bool) -> None:
    assert compare(measured(), now).is_moved is is_moved


def test_an_upstream_has_settled_if_it_repeats_itself() -> None:
    assert is_settled(measured(OTHER), measured(OTHER))
    assert not is_settled(measured(OTHER), measured(BASE))
    assert not is_settled(measured(OTHER, BASE), measured(OTHER, BASE))


NUMBERS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3).filter(lambda given: any(map(abs, given)))


@given(NUMBERS, NUMBERS)
def test_a_distance_is_symmetric_and_zero_only_for_parallel_vectors(one: list[float], other: list[float]) -> None:
    a, b = (Vector(DType.FLOAT32, np.array(numbers, "<f4").tobytes()) for numbers in (one, other))
    assert cosine_distance(a, b) == pytest.approx(cosine_distance(b, a))
    assert 0 <= cosine_distance(a, b) <= 2
    assert cosine_distance(a, a) == 0
    cosine = np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other))
    assert cosine_distance(a, b) == pytest.approx(1 - cosine, abs=1e-6)


@given(NUMBERS, st.integers(0, 2))
def test_one_bit_is_one_changed_number(numbers: list[float], index: int) -> None:
    bits = np.array(numbers, "<f4").view("<u4")
    changed = bits.copy()
    changed[index] ^= 1
    one, other = (Vector(DType.FLOAT32, each.tobytes()) for each in (bits, changed))
    assert changed_numbers(one, other) == 1
    assert changed_numbers(one, one) == 0
    assert changed_numbers(one, Vector(DType.FLOAT32_SHORTEST, one.payload)) == 3  # written in another way


def test_a_small_distance_is_not_rounded_to_zero() -> None:
    (one, *_), (other, *_) = packed(BASE), packed(np.nextafter(BASE.astype("f4"), np.float32(9)).astype("f8"))
    assert 0 < cosine_distance(one, other) < 1e-13


def test_a_measurement_is_read_as_it_was_written() -> None:
    stored = measurement.encode(measured(BASE, OTHER, model="ü"))
    assert measurement.decoded(stored) == measured(BASE, OTHER, model="ü")
    for other in (None, b"", b"\x93", stored[:-1], stored + b"x", measurement.encode(_without_texts())):
        assert measurement.decoded(other) is None


def _without_texts() -> Measurement:
    return Measurement(model="m", alone=(), again=())
