"""The interface of traces and spans, as classes that do nothing, for when tracing is off.

Callers don't check whether tracing is on. `proxy.telemetry.otlp` has subclasses that use OpenTelemetry.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

from multidict import CIMultiDict

from proxy.labels import RequestOutcome
from proxy.protocol.headers import Headers

EMBEDDINGS_ROUTE = "/v1/embeddings"  # its name in traces, for every provider
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
    """The span of one upstream call, which lasts as long as the block."""

    __slots__ = ()

    def outbound(self, headers: CIMultiDict[str]) -> CIMultiDict[str]:
        """``headers`` with the trace context of this span, so that the upstream's spans become its children."""
        return headers

    def responded(self, status: int) -> None:
        pass


class Calls(_Block):
    """Consecutive upstream calls for the same requests, such as a call and its fallbacks.

    Their spans end with the block, because a response must be read before it is known whether the model may be shown.
    """

    __slots__ = ()

    def call(self, method: str, url: str, *, upstream: str, provider: str | None = None, items: int = 0) -> Call:
        """Begin a call. An embeddings call has a ``provider``, the name of its API, and ``items``."""
        return NO_CALL

    def billed(self, tokens: int) -> None:
        """Record the cost of the last call."""


class Span:
    """The span of one request."""

    __slots__ = ()
    trace_id: str | None = None

    def on_route(self, path: str) -> None:
        pass

    def looked_up(self, began_s: float, *, items: int, cached: int) -> None:
        """Record the cache lookup, from ``began_s`` by `time.perf_counter` until now."""

    def flight(self, *, items: int, joined: int) -> AbstractContextManager[object]:
        """The span of the block, which waits for ``items``. Other requests fetch ``joined`` of them."""
        return _NO_CONTEXT

    def calls(self, requests: "Sequence[Span]" = (), *, model: Callable[[], str | None] = lambda: None) -> Calls:
        """``requests`` are all the requests that the calls are for, if not this one alone."""
        return NO_CALLS

    def end(self, status: int, outcome: RequestOutcome, model: str | None, *, items: int, cached: int) -> None:
        pass


class Traces:
    def begin(self, method: str, headers: Headers, began_s: float) -> Span:
        """Begin the span of a request that was received at ``began_s`` by `time.perf_counter`."""
        return NO_SPAN

    async def aclose(self) -> None:
        pass


NO_CALL, NO_CALLS, NO_SPAN = Call(), Calls(), Span()
