"""What is worked out about a text that a client chose is kept, but for a text so long that it must not be (pure)."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_MAX_TEXTS = 4096


class Remembered(Protocol[T_co]):
    def __call__(self, text: str, *others: Any) -> T_co: ...

    def cache_info(self) -> Any:
        """As that of `functools.lru_cache`."""
        ...


def remembered(*, max_length: int) -> Callable[[Callable[..., T]], Remembered[T]]:
    """`lru_cache` for a function of a text, and of what else can be hashed, for texts of up to ``max_length``."""

    def decorate(work: Callable[..., T]) -> Remembered[T]:
        cached = lru_cache(maxsize=_MAX_TEXTS)(work)

        def look_up(text: str, *others: Any) -> T:
            return cached(text, *others) if len(text) <= max_length else work(text, *others)

        look_up.cache_info = cached.cache_info  # type: ignore[attr-defined]
        return cast("Remembered[T]", look_up)

    return decorate
