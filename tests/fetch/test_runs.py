"""What fits into one call."""

from collections.abc import Iterator
from random import Random

import pytest

from proxy.fetch.runs import runs_of

Size = tuple[int, int, int]


@pytest.mark.parametrize("seed", range(20))
def test_each_run_fits_and_none_could_be_longer(seed: int) -> None:
    random = Random(seed)
    sizes: list[Size] = [(random.randrange(5), random.randrange(5), random.randrange(9)) for _ in range(seed)]
    limits = (random.randrange(12), random.randrange(12), random.randrange(20))

    def fits(some: list[Size]) -> bool:
        return all(sum(column) <= limit for column, limit in zip(zip(*some, strict=True), limits, strict=True))

    runs = list(runs_of(sizes, limits))
    assert [size for run in runs for size in sizes[run]] == sizes
    for run in runs:
        some = sizes[run]
        assert some
        assert fits(some) or len(some) == 1
        if run.stop < len(sizes):
            assert not fits([*some, sizes[run.stop]])


def test_no_element_makes_no_run() -> None:
    assert list(runs_of([], (1, 1, 1))) == []


def test_an_element_that_is_too_large_has_a_run_of_its_own() -> None:
    assert list(runs_of([(1, 0, 0), (5, 0, 0), (1, 0, 0), (1, 0, 0)], (2, 9, 9))) == [
        slice(0, 1), slice(1, 2), slice(2, 4)
    ]  # fmt: skip


def test_sizes_are_read_only_as_far_as_a_run_needs() -> None:
    read: list[int] = []

    def sizes() -> Iterator[Size]:
        for number in range(100):
            read.append(number)
            yield 1, 0, 0

    assert next(runs_of(sizes(), (3, 9, 9))) == slice(0, 3)
    assert read == [0, 1, 2, 3]
