"""A collector that receives spans by OTLP over HTTP (https://opentelemetry.io/docs/specs/otlp/)."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent


@dataclass(frozen=True)
class Recorded:
    """A span as it arrived, ids in hexadecimal."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    tracestate: str
    status: int  # 0 unset, 2 error
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    links: list[str]  # the ids of the spans
    resource: dict[str, Any]


@dataclass
class Receiver:
    endpoint: str = ""
    bodies: list[bytes] = field(default_factory=list)
    hold: Callable[[], Awaitable[None]] | None = None

    @property
    def spans(self) -> list[Recorded]:
        return [
            _recorded(span, _values(resource.resource.attributes))
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def named(self, name: str) -> list[Recorded]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Recorded:
        (span,) = self.named(name)
        return span

    def tree(self) -> list[str]:
        """The names of all spans in the order they began, a step to the right of their parents."""
        spans = {span.span_id: span for span in self.spans}

        def depth(span: Recorded) -> int:
            return 1 + depth(spans[span.parent_id]) if span.parent_id in spans else 0

        ordered = sorted(spans.values(), key=lambda span: (span.began_ns, depth(span)))
        return ["  " * depth(span) + span.name for span in ordered]

    async def _take(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        if self.hold is not None:
            await self.hold()
        return web.Response(content_type="application/x-protobuf")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Receiver"]:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()


def _recorded(span: Sent, resource: dict[str, Any]) -> Recorded:
    return Recorded(
        name=span.name,
        kind=Sent.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        tracestate=span.trace_state,
        status=span.status.code,
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        links=[link.span_id.hex() for link in span.links],
        resource=resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
