"""Work that may be interrupted between two of its steps (pure)."""

from collections.abc import Generator
from typing import TypeVar

_T = TypeVar("_T")

# A generator that yields where it may be interrupted, at least every few hundred microseconds, and returns the result.
Steps = Generator[None, None, _T]


def finish(steps: Steps[_T]) -> _T:
    """The result of ``steps``, without an interruption."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result
