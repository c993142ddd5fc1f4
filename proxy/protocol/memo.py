"""Caches of results for texts that clients choose, except texts too long to be kept (pure)."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_MAX_TEXTS = 4096


class Memoized(Protocol[T_co]):
    def __call__(self, text: str, *others: Any) -> T_co: ...

    def cache_info(self) -> Any:
        """That of `functools.lru_cache`."""
        ...


def memoized(*, max_length: int) -> Callable[[Callable[..., T]], Memoized[T]]:
    """`functools.lru_cache` for a function of a text and of other hashable values.

    Results for texts of more than ``max_length`` characters are not kept.
    """

    def decorate(work: Callable[..., T]) -> Memoized[T]:
        cached = lru_cache(maxsize=_MAX_TEXTS)(work)

        def look_up(text: str, *others: Any) -> T:
            return cached(text, *others) if len(text) <= max_length else work(text, *others)

        look_up.cache_info = cached.cache_info  # type: ignore[attr-defined]
        return cast("Memoized[T]", look_up)

    return decorate
