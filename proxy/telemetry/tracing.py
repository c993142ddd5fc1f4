"""The spans of a request, for whoever makes them: here nobody does, in `proxy.telemetry.otlp` OpenTelemetry.

Nothing in here does anything, so that who calls it need not ask whether traces are on.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

from multidict import CIMultiDict

from proxy.protocol.headers import Headers

_NO_CONTEXT = nullcontext()


class _Block:
    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Call(_Block):
    """A call upstream; it lasts as long as the block."""

    __slots__ = ()

    def outbound(self, headers: CIMultiDict[str]) -> CIMultiDict[str]:
        """The fields to send: those given, where the upstream's own spans are to be this one's children."""
        return headers

    def answered(self, status: int) -> None:
        pass


class Calls(_Block):
    """Calls upstream that are one after the other made for the same requests.

    What may be said of the model is known after the answer was read, so their spans end with the block.
    """

    __slots__ = ()

    def call(self, method: str, url: str, *, upstream: str, provider: str | None = None, items: int = 0) -> Call:
        """An embeddings call has a ``provider``, whose API it is, and ``items``."""
        return NO_CALL

    def billed(self, tokens: int) -> None:
        """What the last call cost."""


class Span:
    """One request's."""

    __slots__ = ()
    trace_id: str | None = None

    def on_route(self, path: str) -> None:
        pass

    def looked_up(self, began_s: float, *, items: int, cached: int) -> None:
        """The items were looked for from ``began_s``, by `time.perf_counter`, until now."""

    def flight(self, *, items: int, joined: int) -> AbstractContextManager[object]:
        """Items are waited for, and of these so many that another request asked for."""
        return _NO_CONTEXT

    def calls(self, requests: "Sequence[Span]" = (), *, model: Callable[[], str | None] = lambda: None) -> Calls:
        """``requests`` are all those that a call is made for, if it is not this one alone."""
        return NO_CALLS

    def end(self, status: int, outcome: str, model: str | None, *, items: int, cached: int) -> None:
        pass


class Traces:
    def begin(self, method: str, headers: Headers, began_s: float) -> Span:
        """The span of a request that came in, at ``began_s`` by `time.perf_counter`."""
        return NO_SPAN

    async def aclose(self) -> None:
        pass


NO_CALL, NO_CALLS, NO_SPAN = Call(), Calls(), Span()
