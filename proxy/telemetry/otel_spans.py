"""The spans of a request, made with OpenTelemetry.

Attributes follow the conventions for HTTP (https://opentelemetry.io/docs/specs/semconv/http/http-spans/) and generative
AI (https://github.com/open-telemetry/semantic-conventions-genai), except that paths, queries and client addresses are
left out, because they may contain anything.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from urllib.parse import urlsplit

from multidict import CIMultiDict
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Link, SpanKind, StatusCode, Tracer, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from proxy.errors import ProxyError
from proxy.labels import RequestOutcome
from proxy.protocol.headers import Headers
from proxy.telemetry.tracing import Call, Calls, Span

_SERVER_ERROR, _CLIENT_ERROR = 500, 400
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_TRACE_CONTEXT_FIELDS = ("traceparent", "tracestate")
# Providers that the conventions call by another name.
_PROVIDERS = {"gemini": "gcp.gemini", "mistral": "mistral_ai"}


class _Fields(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        return carrier.getall(key, None)

    def keys(self, carrier: Headers) -> list[str]:
        return list(carrier)


_fields = _Fields()
_propagator = TraceContextTextMapPropagator()


def begin(tracer: Tracer, method: str, headers: Headers, began_s: float) -> Span:
    """As `proxy.telemetry.tracing.Traces.begin`."""
    span = tracer.start_span(
        method if method in _METHODS else "HTTP",
        context=_propagator.extract(headers, Context(), _fields),
        kind=SpanKind.SERVER,
        attributes={"http.request.method": _method(method), "url.scheme": "http"},
        start_time=_time_ns(began_s),
    )
    return _Span(tracer, span)


def _time_ns(at_s: float) -> int:
    """The Unix time of ``at_s``, a value of `time.perf_counter`."""
    return time.time_ns() - int((time.perf_counter() - at_s) * 1e9)


def _method(method: str) -> str:
    return method if method in _METHODS else "_OTHER"


class _Span(Span):
    __slots__ = ("_context", "_tracer", "recorded", "trace_id")

    def __init__(self, tracer: Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self.recorded = span
        self._context = trace.set_span_in_context(span, Context())
        self.trace_id = format_trace_id(span.get_span_context().trace_id)

    def on_route(self, path: str) -> None:
        if self.recorded.is_recording():
            self.recorded.update_name(f"POST {path}")
            self.recorded.set_attributes({"http.route": path, "gen_ai.operation.name": "embeddings"})

    def looked_up(self, began_s: float, *, items: int, cached: int) -> None:
        if self.recorded.is_recording():
            self._tracer.start_span(
                "cache.lookup",
                context=self._context,
                attributes={"embedding_proxy.items": items, "embedding_proxy.cached": cached},
                start_time=_time_ns(began_s),
            ).end()

    def flight(self, *, items: int, joined: int) -> AbstractContextManager[object]:
        if not self.recorded.is_recording():
            return super().flight(items=items, joined=joined)
        return self._flight({"embedding_proxy.items": items, "embedding_proxy.joined": joined})

    @contextmanager
    def _flight(self, attributes: dict[str, int]) -> Iterator[None]:
        span = self._tracer.start_span("flight", context=self._context, attributes=attributes)
        try:
            yield
        finally:
            span.end()

    def calls(self, requests: Sequence[Span] = (), *, model: Callable[[], str | None] = lambda: None) -> Calls:
        spans = [request.recorded for request in dict.fromkeys(requests) if isinstance(request, _Span)] or [
            self.recorded
        ]
        # A span has one parent. Prefer a request that is sampled, or the call would be in no trace.
        parent = next((span for span in spans if span.get_span_context().trace_flags.sampled), spans[0])
        links = [Link(span.get_span_context()) for span in spans] if len(spans) > 1 else []
        return _Calls(self._tracer, parent, links, model)

    def end(self, status: int, outcome: RequestOutcome, model: str | None, *, items: int, cached: int) -> None:
        if not self.recorded.is_recording():
            return
        attributes: dict[str, AttributeValue] = {
            "http.response.status_code": status,
            "embedding_proxy.outcome": outcome.value,
            "embedding_proxy.items": items,
            "embedding_proxy.cached": cached,
        }
        if model is not None:
            attributes["gen_ai.request.model"] = model
        if status >= _SERVER_ERROR:  # the conventions: a server span of a 4xx is no error
            attributes["error.type"] = str(status)
            self.recorded.set_status(StatusCode.ERROR)
        self.recorded.set_attributes(attributes)
        self.recorded.end()


class _Calls(Calls):
    __slots__ = ("_calls", "_context", "_links", "_model", "_tracer")

    def __init__(self, tracer: Tracer, parent: trace.Span, links: list[Link], model: Callable[[], str | None]) -> None:
        self._tracer = tracer
        self._context = trace.set_span_in_context(parent, Context())
        self._links = links
        self._model = model
        self._calls: list[_Call] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for call in self._calls:
            call.end(self._model())

    def call(self, method: str, url: str, *, upstream: str, provider: str | None = None, items: int = 0) -> Call:
        parts = urlsplit(url)
        attributes: dict[str, AttributeValue] = {
            "http.request.method": _method(method),
            "server.address": parts.hostname or "",
            "server.port": parts.port or (443 if parts.scheme == "https" else 80),
            "embedding_proxy.upstream": upstream,
        }
        if provider is not None:
            attributes["gen_ai.operation.name"] = "embeddings"
            attributes["gen_ai.provider.name"] = _PROVIDERS.get(provider, provider)
            attributes["embedding_proxy.items"] = items
            attributes["embedding_proxy.requests"] = max(1, len(self._links))
        span = self._tracer.start_span(
            "upstream", context=self._context, kind=SpanKind.CLIENT, attributes=attributes, links=self._links
        )
        self._calls.append(_Call(span))
        return self._calls[-1]

    def billed(self, tokens: int) -> None:
        self._calls[-1].billed(tokens)


class _Call(Call):
    __slots__ = ("_ended_ns", "_span")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._ended_ns: int | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended_ns = time.time_ns()
        # A cancelled call is no failure: its requests have gone.
        if error is not None and not isinstance(error, asyncio.CancelledError):
            self._failed(error.code if isinstance(error, ProxyError) else type(error).__name__)

    def outbound(self, headers: CIMultiDict[str]) -> CIMultiDict[str]:
        outbound = headers.copy()
        for name in _TRACE_CONTEXT_FIELDS:
            outbound.popall(name, None)
        _propagator.inject(outbound, trace.set_span_in_context(self._span, Context()))
        return outbound

    def responded(self, status: int) -> None:
        self._span.set_attribute("http.response.status_code", status)
        if status >= _CLIENT_ERROR:
            self._failed(str(status))

    def billed(self, tokens: int) -> None:
        self._span.set_attribute("gen_ai.usage.input_tokens", tokens)

    def end(self, model: str | None) -> None:
        if model is not None:
            self._span.set_attribute("gen_ai.request.model", model)
        self._span.end(self._ended_ns)

    def _failed(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(StatusCode.ERROR)
