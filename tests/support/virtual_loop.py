"""An event loop whose clock is handed in: when nothing else is left to do, it jumps to the next timer."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")

_MAX_TURNS = 20_000


class _Selector(selectors.SelectSelector):
    """Waits for no descriptor: the time that it should wait passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._turns = 0  # of the event loop in this instant

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the event loop waits for something that never happens")
        self._turns = 0 if timeout > 0 else self._turns + 1
        if self._turns > _MAX_TURNS:
            raise RuntimeError("the event loop is busy, and no time passes")
        self.now_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s


def virtually(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        run_virtually(test(*arguments, **named))

    return run


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
