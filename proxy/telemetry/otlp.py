"""Sends spans to a collector, by OTLP over HTTP; loaded only with ``--traces otlp``.

The endpoint, the sampler and the service name are set by OpenTelemetry's own environment variables, which its SDK
reads: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NoOpTracer, Tracer
from opentelemetry.util.types import AttributeValue

from proxy import __version__
from proxy.errors import ConfigError
from proxy.protocol.headers import Headers
from proxy.telemetry import otel_spans
from proxy.telemetry.tracing import Span, Traces

_log = logging.getLogger(__name__)

_FLUSH_S = 2.0
# What the SDK logs when this module shuts it down.
_SHUTDOWN_MESSAGES = ("Shutdown", "Exporter already shutdown")
_REPEAT_S = 60.0


class _RateLimitedHandler(logging.Handler):
    """Logs each of the SDK's messages at most once a minute, without its traceback.

    The SDK logs every failed attempt: with a collector that is down, several in ten seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logged_at_s: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith(_SHUTDOWN_MESSAGES):
            return
        now_s = time.monotonic()
        if now_s - self._logged_at_s.get(record.msg, -_REPEAT_S) < _REPEAT_S:
            return
        self._logged_at_s[record.msg] = now_s
        # An exception's text may contain the collector's URL, and the URL a secret.
        arguments = tuple(_without_text(argument) for argument in record.args or ())
        message = record.msg % arguments if arguments else record.msg
        cause = f" {record.exc_info[0].__name__}." if record.exc_info and record.exc_info[0] else ""
        _log.log(record.levelno, "traces: %s%s (logged at most once a minute)", message, cause)


def _without_text(argument: object) -> object:
    return type(argument).__name__ if isinstance(argument, BaseException) else argument


_sdk_log = logging.getLogger("opentelemetry")
_sdk_handler = _RateLimitedHandler()
_sdk_log.addHandler(_sdk_handler)
_sdk_log.propagate = False
# These loggers quote what they can't parse: text that a client sent, or the collector's credentials.
for _name in ("trace", "util", "attributes"):
    logging.getLogger(f"opentelemetry.{_name}").setLevel(logging.CRITICAL)


def start() -> Traces:
    """Start sending spans. Raises `ConfigError`."""
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
    configured = Resource.create()
    defaults: dict[str, AttributeValue] = {}
    if str(configured.attributes[SERVICE_NAME]).startswith("unknown_service"):
        defaults[SERVICE_NAME] = "embedding-proxy"
    if SERVICE_VERSION not in configured.attributes:
        defaults[SERVICE_VERSION] = __version__
    return configured.merge(Resource(defaults))


class _Traces(Traces):
    def __init__(self, tracer: Tracer, exporter: OTLPSpanExporter, shut_down: Callable[[], None]) -> None:
        self._tracer = tracer
        self._exporter = exporter
        self._shut_down = shut_down

    def begin(self, method: str, headers: Headers, began_s: float) -> Span:
        return otel_spans.begin(self._tracer, method, headers, began_s)

    async def aclose(self) -> None:
        """Send the spans that have ended, within two seconds; those the collector has not taken by then are lost."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._shut_down()
            with suppress(RuntimeError):  # the loop is closed: it did not wait this long
                loop.call_soon_threadsafe(ended.set)

        # The SDK waits up to 30 s. In one of the loop's own threads, that would delay closing the loop.
        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(_FLUSH_S):
                await ended.wait()
        except TimeoutError:
            _log.warning("stopping: the collector did not accept all traces within %g s", _FLUSH_S)
        finally:
            if not ended.is_set():
                self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends its wait before the next attempt
