"""What fits into one call (pure)."""

from collections.abc import Iterable, Iterator
from operator import add, gt


def runs_of(sizes: Iterable[tuple[int, ...]], limits: tuple[int, ...]) -> Iterator[slice]:
    """Cut a sequence, in order, into the longest runs whose summed sizes keep within ``limits``.

    An element that alone exceeds them is a run of its own: the upstream decides what to do with it.
    """
    start, end, used = 0, -1, (0,) * len(limits)
    for end, size in enumerate(sizes):
        grown = tuple(map(add, used, size))
        if end > start and any(map(gt, grown, limits)):
            yield slice(start, end)
            start, grown = end, size
        used = grown
    if end >= start:
        yield slice(start, end + 1)
