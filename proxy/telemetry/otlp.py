"""Spans by OpenTelemetry, sent by OTLP over HTTP.

Where to, how many of them, and under which name is said by OpenTelemetry's own variables, which its SDK reads:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/. Attributes follow the conventions for
HTTP (https://opentelemetry.io/docs/specs/semconv/http/http-spans/) and generative AI
(https://github.com/open-telemetry/semantic-conventions-genai), but for paths, queries and addresses of clients, in
which there may be anything.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from urllib.parse import urlsplit

from multidict import CIMultiDict
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NoOpTracer, SpanKind, StatusCode, Tracer, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from proxy import __version__
from proxy.errors import ConfigError, ProxyError
from proxy.protocol.headers import Headers
from proxy.telemetry.tracing import Call, Calls, Span, Traces

_log = logging.getLogger(__name__)

_FLUSH_S = 2.0
# What the SDK says when it is told to end.
_OWN_DOING = ("Shutdown", "Exporter already shutdown")
_SAY_AGAIN_S = 60.0
_SERVER_ERROR, _CLIENT_ERROR = 500, 400
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_FIELDS = ("traceparent", "tracestate")
# Providers that the conventions call by another name.
_PROVIDERS = {"gemini": "gcp.gemini", "mistral": "mistral_ai"}


class _RateLimitedHandler(logging.Handler):
    """Says what the SDK says, each thing once a minute, and without the traceback.

    Of a collector that is down it would tell at every attempt, several times in ten seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said_s: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith(_OWN_DOING):
            return
        now_s = time.monotonic()
        if now_s - self._said_s.get(record.msg, -_SAY_AGAIN_S) >= _SAY_AGAIN_S:
            self._said_s[record.msg] = now_s
            # The text of an exception may have the collector's URL, and that a secret.
            arguments = tuple(_shown(argument) for argument in record.args or ())
            said = record.msg % arguments if arguments else record.msg
            why = f" {record.exc_info[0].__name__}." if record.exc_info and record.exc_info[0] else ""
            _log.log(record.levelno, "traces: %s%s (said once a minute at most)", said, why)


def _shown(argument: object) -> object:
    return type(argument).__name__ if isinstance(argument, BaseException) else argument


_sdk_log = logging.getLogger("opentelemetry")
_seldom = _RateLimitedHandler()
_sdk_log.addHandler(_seldom)
_sdk_log.propagate = False
# These repeat what they can't read: what a client sent, or the collector's credentials.
for _name in ("trace", "util", "attributes"):
    logging.getLogger(f"opentelemetry.{_name}").setLevel(logging.CRITICAL)


def start() -> Traces:
    """Begin to send spans. Raises `ConfigError`."""
    try:
        exporter = OTLPSpanExporter()
        processor = BatchSpanProcessor(exporter)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--traces otlp: OpenTelemetry does not take its settings: {error}") from error
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("embedding-proxy", __version__)
    if isinstance(tracer, NoOpTracer):  # OTEL_SDK_DISABLED
        provider.shutdown()
        return Traces()
    return _Traces(tracer, exporter, provider.shutdown)


def _resource() -> Resource:
    found = Resource.create()
    own: dict[str, AttributeValue] = {}
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        own[SERVICE_NAME] = "embedding-proxy"
    if SERVICE_VERSION not in found.attributes:
        own[SERVICE_VERSION] = __version__
    return found.merge(Resource(own))


class _Fields(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        return carrier.getall(key, None)

    def keys(self, carrier: Headers) -> list[str]:
        return list(carrier)


_fields = _Fields()
_propagator = TraceContextTextMapPropagator()


class _Traces(Traces):
    def __init__(self, tracer: Tracer, exporter: OTLPSpanExporter, shut_down: Callable[[], None]) -> None:
        self._tracer = tracer
        self._exporter = exporter
        self._shut_down = shut_down

    def begin(self, method: str, headers: Headers, began_s: float) -> Span:
        span = self._tracer.start_span(
            method if method in _METHODS else "HTTP",
            context=_propagator.extract(headers, Context(), _fields),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": _known(method), "url.scheme": "http"},
            start_time=_time_ns(began_s),
        )
        return _Span(self._tracer, span)

    async def aclose(self) -> None:
        """Send what has ended, within two seconds; what the collector has not taken by then is lost."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._shut_down()
            with suppress(RuntimeError):  # the loop did not wait for so long
                loop.call_soon_threadsafe(ended.set)

        # The SDK waits for 30 s, and the loop's own threads are waited for when it is closed.
        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(_FLUSH_S):
                await ended.wait()
        except TimeoutError:
            _log.warning("stopping: the collector did not take all traces within %g s", _FLUSH_S)
        finally:
            if not ended.is_set():
                self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends its waiting for another attempt


def _time_ns(at_s: float) -> int:
    """Unix time of what was at ``at_s`` by `time.perf_counter`."""
    return time.time_ns() - int((time.perf_counter() - at_s) * 1e9)


def _known(method: str) -> str:
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
        # A span has one parent. By preference that is a request whose trace is kept, or the call would be in none.
        parent = next((span for span in spans if span.get_span_context().trace_flags.sampled), spans[0])
        links = [Link(span.get_span_context()) for span in spans] if len(spans) > 1 else []
        return _Calls(self._tracer, parent, links, model)

    def end(self, status: int, outcome: str, model: str | None, *, items: int, cached: int) -> None:
        if not self.recorded.is_recording():
            return
        attributes: dict[str, AttributeValue] = {
            "http.response.status_code": status,
            "embedding_proxy.outcome": outcome,
            "embedding_proxy.items": items,
            "embedding_proxy.cached": cached,
        }
        if model is not None:
            attributes["gen_ai.request.model"] = model
        if status >= _SERVER_ERROR:  # a client's mistake is no error of the server's
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
            "http.request.method": _known(method),
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
        if error is not None and not isinstance(error, asyncio.CancelledError):  # nobody waits any more
            self._failed(error.code if isinstance(error, ProxyError) else type(error).__name__)

    def outbound(self, headers: CIMultiDict[str]) -> CIMultiDict[str]:
        outbound = headers.copy()
        for name in _FIELDS:
            outbound.popall(name, None)
        _propagator.inject(outbound, trace.set_span_in_context(self._span, Context()))
        return outbound

    def answered(self, status: int) -> None:
        self._span.set_attribute("http.response.status_code", status)
        if status >= _CLIENT_ERROR:
            self._failed(str(status))

    def billed(self, tokens: int) -> None:
        self._span.set_attribute("gen_ai.usage.input_tokens", tokens)

    def end(self, model: str | None) -> None:
        if model is not None:
            self._span.set_attribute("gen_ai.request.model", model)
        self._span.end(self._ended_ns)

    def _failed(self, why: str) -> None:
        self._span.set_attribute("error.type", why)
        self._span.set_status(StatusCode.ERROR)
