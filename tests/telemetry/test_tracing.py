"""What is exported of each kind of request, as a collector receives it."""

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import ClientSession, WSMsgType, web

from proxy.app import running
from proxy.config.checks import require_otlp
from proxy.config.settings import SameModel, UpstreamSetting
from proxy.errors import ConfigError
from proxy.protocol.providers import PROVIDERS
from proxy.telemetry import otlp
from tests.conftest import StartProxy
from tests.e2e.test_no_leaks import BEARER, KEY, TEXT, canaries_in
from tests.support.client import Client
from tests.support.otlp_receiver import Receiver
from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.scripted import Call, ScriptedUpstream, error_reply
from tests.support.settings import settings_for

ROUTE = "POST /v1/embeddings"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"

Traced = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    async with Receiver().serving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield receiver


@pytest.fixture
def traced(upstream: ScriptedUpstream) -> Traced:
    """A client of a proxy; when the block has ended, the collector has all spans."""

    @asynccontextmanager
    async def traced(
        *,
        write_log: Callable[[str], object] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        **changes: Any,
    ) -> AsyncIterator[Client]:
        settings = settings_for(upstream, **{"traces": "otlp"} | changes)
        proxies = running(settings, write_log=write_log, monotonic=monotonic)
        async with proxies as proxy, ClientSession(auto_decompress=False) as session:
            yield Client(session, proxy)

    return traced


def held_by(
    upstream: ScriptedUpstream, gate: asyncio.Event, arrived: asyncio.Event
) -> Callable[[Call], Awaitable[web.Response]]:
    async def reply(call: Call) -> web.Response:
        arrived.set()
        await gate.wait()
        return upstream.embed(call)

    return reply


async def until_queued(client: Client, items: int) -> None:
    while await client.metric("embedding_proxy_upstream_queued_items") < items:
        await asyncio.sleep(0)


async def test_the_spans_of_a_miss(traced: Traced, collector: Receiver, upstream: ScriptedUpstream) -> None:
    async with traced() as client:
        await client.embed(["a", "b", "a"])
    assert collector.tree() == [ROUTE, "  cache.lookup", "  flight", "  upstream"]
    request, call = collector.one(ROUTE), collector.one("upstream")
    assert (request.kind, request.parent_id, request.status) == ("SERVER", "", 0)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "gen_ai.operation.name": "embeddings",
        "gen_ai.request.model": "m",
        "embedding_proxy.outcome": "miss",
        "embedding_proxy.items": 3,
        "embedding_proxy.cached": 1,  # as the log has it: it is in the request twice
    }
    assert (call.kind, call.links, call.status) == ("CLIENT", [], 0)
    assert call.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": int(upstream.base_url.removesuffix("/v1").rpartition(":")[2]),
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "generic",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 2,
        "embedding_proxy.upstream": "scripted",
        "embedding_proxy.items": 2,
        "embedding_proxy.requests": 1,
    }
    lookup, flight = collector.one("cache.lookup"), collector.one("flight")
    assert lookup.attributes == {"embedding_proxy.items": 3, "embedding_proxy.cached": 1}
    assert flight.attributes == {"embedding_proxy.items": 2, "embedding_proxy.joined": 0}
    for span in (lookup, flight, call):
        assert request.began_ns <= span.began_ns <= span.ended_ns <= request.ended_ns
    assert request.resource["service.name"] == "embedding-proxy"


async def test_a_span_says_how_many_items_were_cached(traced: Traced, collector: Receiver) -> None:
    async with traced() as client:
        for given in (["a"], ["a"], ["a"], ["a", "b"]):  # the third is known by its bytes
            await client.embed(given)
    assert [
        (span.attributes["embedding_proxy.outcome"], span.attributes["embedding_proxy.cached"])
        for span in collector.named(ROUTE)
    ] == [("miss", 0), ("hit", 1), ("hit", 1), ("partial", 1)]
    assert collector.tree() == [
        *(ROUTE, "  cache.lookup", "  flight", "  upstream"),
        *(ROUTE, "  cache.lookup"),
        *(ROUTE, "  cache.lookup"),
        *(ROUTE, "  cache.lookup", "  flight", "  upstream"),
    ]
    assert [span.attributes["embedding_proxy.items"] for span in collector.named("upstream")] == [1, 1]


async def test_a_request_that_joins_a_fetch_has_a_flight_and_no_call(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream
) -> None:
    gate, arrived = asyncio.Event(), asyncio.Event()
    upstream.reply = held_by(upstream, gate, arrived)
    async with traced() as client:
        first = asyncio.create_task(client.embed(["a"]))
        await arrived.wait()
        second = asyncio.create_task(client.embed(["a", "b"], headers={"Cache_Control": "max-age=60"}))
        await until_queued(client, 2)
        gate.set()
        await asyncio.gather(first, second)
    joined = [span.attributes["embedding_proxy.joined"] for span in collector.named("flight")]
    assert sorted(joined) == [0, 1]
    one, other = collector.named("upstream")
    assert {one.attributes["embedding_proxy.items"], other.attributes["embedding_proxy.items"]} == {1}
    assert one.trace_id != other.trace_id


async def test_a_request_that_waits_for_anothers_validation_has_a_flight(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.embeddings.unvalidated._PROBE_TIMEOUT_S", 0.05)
    gate, now_s = asyncio.Event(), 0.0
    async with traced(monotonic=lambda: now_s) as client:
        await client.embed("a")
        upstream.reply = held_by(upstream, gate, asyncio.Event())
        now_s = 1e6
        for _ in range(2):
            assert (await client.embed("a")).headers["Cache-Status"] == "embedding-proxy; hit; detail=unvalidated"
        gate.set()
    joined = {span.parent_id: span.attributes["embedding_proxy.joined"] for span in collector.named("flight")}
    requests = sorted(collector.named(ROUTE), key=lambda span: span.began_ns)
    assert [joined[request.span_id] for request in requests] == [0, 0, 1]
    assert {call.parent_id for call in collector.named("upstream")} == {request.span_id for request in requests[:2]}


async def merged(client: Client, upstream: ScriptedUpstream, **headers: str) -> None:
    """Three requests, of which two travel in one call while the first is under way."""
    gate, arrived = asyncio.Event(), asyncio.Event()
    upstream.reply = held_by(upstream, gate, arrived)
    first = asyncio.create_task(client.embed("a"))
    await arrived.wait()
    others = []
    for queued, item in enumerate(("b", "c"), start=2):
        others.append(asyncio.create_task(client.embed(item, headers=headers if item == "b" else {})))
        await until_queued(client, queued)
    gate.set()
    await asyncio.gather(first, *others)


async def test_a_merged_call_has_the_first_request_as_parent_and_links_to_all(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream
) -> None:
    async with traced(batch_window_s=60.0) as client:
        await merged(client, upstream)
    alone, call = sorted(collector.named("upstream"), key=lambda span: span.began_ns)
    _, first, second = sorted(collector.named(ROUTE), key=lambda span: span.began_ns)
    assert alone.links == []
    assert (call.trace_id, call.parent_id) == (first.trace_id, first.span_id)
    assert call.links == [first.span_id, second.span_id]
    assert call.attributes["embedding_proxy.requests"] == 2
    assert upstream.calls[1].headers["traceparent"].split("-")[1:3] == [call.trace_id, call.span_id]


async def test_a_merged_call_prefers_a_sampled_parent(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream
) -> None:
    async with traced(batch_window_s=60.0) as client:
        await merged(client, upstream, traceparent=f"00-{TRACE}-{PARENT}-00")
    _, kept = sorted(collector.named(ROUTE), key=lambda span: span.began_ns)
    _, call = sorted(collector.named("upstream"), key=lambda span: span.began_ns)
    assert call.parent_id == kept.span_id
    assert len(call.links) == 2


async def test_a_span_fails_by_the_servers_errors_only(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream
) -> None:
    async with traced(rate_limit_wait_s=0.0) as client:
        for status in (429, 500):
            upstream.reply = error_reply(status, b"{}")
            await client.embed("a", model="unheard-of")
    told = [(span.attributes["http.response.status_code"], span.status) for span in collector.named(ROUTE)]
    assert told == [(429, 0), (500, 2)], "what a client did wrong is no error of the server"
    assert [span.attributes.get("error.type") for span in collector.named(ROUTE)] == [None, "500"]
    assert [span.attributes["error.type"] for span in collector.named("upstream")] == ["429", "500"]
    assert [span.status for span in collector.named("upstream")] == [2, 2]
    assert {span.attributes["gen_ai.request.model"] for span in collector.named(ROUTE)} == {"other"}
    assert {span.attributes["gen_ai.request.model"] for span in collector.named("upstream")} == {"other"}


async def test_an_unreachable_upstream(traced: Traced, collector: Receiver, upstream: ScriptedUpstream) -> None:
    nowhere = UpstreamSetting(name="nowhere", base_url=f"http://127.0.0.1:{free_port()}/v1")
    async with traced(upstream=nowhere) as client:
        assert (await client.embed("a")).status == 502
        assert (await client.send("GET", "/v1/models")).status == 502
    assert [span.attributes["error.type"] for span in collector.named("upstream")] == ["upstream_unreachable"] * 2
    assert collector.one(ROUTE).status == 2


async def test_a_fallback_has_a_call_of_its_own(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream
) -> None:
    first = UpstreamSetting(
        name="first", base_url=f"http://127.0.0.1:{free_port()}/v1", same_model=(SameModel(upstream="second"),)
    )
    second = UpstreamSetting(
        name="second", base_url=upstream.base_url, models=("never",), provider=PROVIDERS["mistral"]
    )
    async with traced(upstream=first, routed=(second,)) as client:
        assert (await client.embed("a")).cache == "MISS"
    calls = collector.named("upstream")
    assert [(call.attributes["embedding_proxy.upstream"], call.status) for call in calls] == [
        ("first", 2),
        ("second", 0),
    ]
    assert {call.parent_id for call in calls} == {collector.one(ROUTE).span_id}
    assert calls[0].ended_ns <= calls[1].began_ns
    assert calls[1].attributes["gen_ai.provider.name"] == "mistral_ai"


async def test_the_spans_of_a_relayed_request(traced: Traced, collector: Receiver, upstream: ScriptedUpstream) -> None:
    async with traced() as client:
        assert (await client.embed(["a", "b"], stream=True)).cache == "BYPASS"
    assert collector.tree() == [ROUTE, "  upstream"]
    assert collector.one(ROUTE).attributes["embedding_proxy.outcome"] == "bypass"
    call = collector.one("upstream")
    assert (call.attributes["embedding_proxy.items"], call.attributes["http.response.status_code"]) == (2, 200)
    assert upstream.calls[0].headers["traceparent"].split("-")[1:3] == [call.trace_id, call.span_id]


@pytest.mark.parametrize(
    "target", ["/v1//%65mbeddings/", "/v1/engines/m/embeddings", "/openai/deployments/m/embeddings"]
)
async def test_every_path_of_the_cached_route_is_one_route(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream, target: str
) -> None:
    async with traced() as client:
        for _ in range(4):  # the last of them without being parsed
            await client.post({"model": "m", "input": "x"}, target=target)
    assert {span.name for span in collector.spans if span.kind == "SERVER"} == {ROUTE}
    assert {span.attributes["http.route"] for span in collector.named(ROUTE)} == {"/v1/embeddings"}


async def test_every_other_route_has_a_span_with_no_path(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream
) -> None:
    upstream.reply = lambda _: web.Response()
    async with traced() as client:
        await client.send("GET", "/v1/files/secret?key=secret")
        await client.send("PROPFIND", "/v1/files")
        await client.send("GET", "//")
        assert (await client.send("TRACE", "/")).status == 400
    assert [span.name for span in collector.spans if span.kind == "SERVER"] == ["GET", "HTTP", "GET", "TRACE"]
    assert [span.attributes["http.request.method"] for span in collector.named("upstream")] == ["GET", "_OTHER", "GET"]
    assert "gen_ai.operation.name" not in collector.named("upstream")[0].attributes
    assert b"secret" not in b"".join(collector.bodies)


async def test_the_span_of_a_websocket(traced: Traced, collector: Receiver, upstream: ScriptedUpstream) -> None:
    async def talk(call: Call) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(call.request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
        return socket

    upstream.reply = talk
    async with traced() as client, client.session.ws_connect(client.origin + "/v1/realtime") as socket:
        await socket.send_str("hello")
        assert (await socket.receive()).data == "hello"
    call = collector.one("upstream")
    assert call.status == 0, "a client that leaves is no error of the upstream's"
    assert upstream.calls[0].headers["traceparent"].split("-")[2] == call.span_id


async def test_a_valid_trace_context_is_continued(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream
) -> None:
    lines: list[str] = []
    async with traced(write_log=lines.append, log_format="json") as client:
        await client.embed("a", headers={"traceparent": TRACEPARENT, "tracestate": "one=1,two=2"})
        await client.embed("b")
    first, second = collector.named(ROUTE)
    assert (first.trace_id, first.parent_id, first.tracestate) == (TRACE, PARENT, "one=1,two=2")
    sent = upstream.calls[0].headers
    assert sent["traceparent"] == f"00-{TRACE}-{collector.named('upstream')[0].span_id}-01"
    assert sent["tracestate"] == "one=1,two=2"
    assert second.trace_id not in {TRACE, ""}
    assert "tracestate" not in upstream.calls[1].headers
    assert [orjson.loads(line)["trace_id"] for line in "".join(lines).splitlines()] == [TRACE, second.trace_id]


@pytest.mark.parametrize("given", ["nonsense", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"])
async def test_an_invalid_trace_context_is_not_continued(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream, given: str
) -> None:
    async with traced() as client:
        await client.embed("a", headers={"traceparent": given, "tracestate": "one=1"})
    assert collector.one(ROUTE).parent_id == ""
    assert upstream.calls[0].headers.getall("traceparent")[0].split("-")[1] == collector.one(ROUTE).trace_id
    assert "tracestate" not in upstream.calls[0].headers


async def test_an_unsampled_trace_is_propagated_and_not_exported(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream
) -> None:
    lines: list[str] = []
    async with traced(write_log=lines.append, log_format="json") as client:
        await client.embed("a", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        await client.embed(["a", ""], headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert collector.spans == []
    for call in upstream.calls:
        assert re.fullmatch(f"00-{TRACE}-(?!{PARENT})[0-9a-f]{{16}}-00", call.headers["traceparent"])
    assert orjson.loads("".join(lines).splitlines()[0])["trace_id"] == TRACE


async def test_the_standard_variables_apply(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "vectors")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=7,deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.endpoint + "/v1/traces")
    async with traced() as client:
        await client.embed("a")
    resource = collector.one(ROUTE).resource
    assert resource["service.name"] == "vectors"
    assert resource["service.version"] == "7"
    assert resource["deployment.environment.name"] == "test"
    collector.bodies.clear()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async with traced() as client:
        await client.embed("a")
    monkeypatch.delenv("OTEL_TRACES_SAMPLER")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with traced() as client:
        await client.embed("b", headers={"traceparent": TRACEPARENT})
    assert collector.bodies == []
    assert upstream.calls[-1].headers["traceparent"] == TRACEPARENT


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER: 'jaeger' is not supported with --traces otlp"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "OTEL_TRACES_EXPORTER: 'none' is not supported"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' is not .* http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: 'grpc' is not"),
    ],
)
def test_variables_that_ask_for_what_is_not_supported(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_otlp(environ)


def test_an_unsupported_variable_ends_the_command() -> None:
    command = [sys.executable, "-m", "proxy", "serve", "--store", "memory:", "--traces", "otlp"]
    environ = os.environ | {"OTEL_TRACES_EXPORTER": "zipkin"}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == (
        "embedding-proxy: OTEL_TRACES_EXPORTER: 'zipkin' is not supported with --traces otlp; accepted: otlp\n"
    )


def test_variables_that_are_supported() -> None:
    require_otlp({})
    require_otlp({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": ""})
    require_otlp({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


async def test_settings_that_the_sdk_rejects(
    traced: Traced, collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with pytest.raises(ConfigError, match=r"--traces otlp: .*max_queue_size must be a positive integer"):
        async with traced():
            pass


async def test_no_credential_or_text_is_exported(
    traced: Traced, collector: Receiver, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    def echo(call: Call) -> web.Response:
        return web.json_response({"error": {"message": f"{dict(call.headers)} {call.body!r}"}}, status=400, reason=TEXT)

    state = f"{KEY}={TEXT}={TEXT}"
    with caplog.at_level(logging.DEBUG):
        async with traced() as client:
            for reply in (None, echo, error_reply(500, TEXT.encode(), x=KEY)):
                upstream.reply = reply
                for body in ({"model": "m", "input": TEXT}, {"model": TEXT, "input": ["", TEXT], "stream": KEY}):
                    for target in ("/v1/embeddings", f"/v1/embeddings?key={KEY}", f"/v1/{KEY}/{TEXT[4:11]}?q={KEY}"):
                        fields = {"traceparent": f"00-{KEY}", "tracestate": state, "Cookie": KEY, "User_Agent": TEXT}
                        await client.post(body, target=target, key=BEARER, X_Request_Id=KEY, **fields)
                        await client.post(body, target=target, key=BEARER, **fields | {"traceparent": TRACEPARENT})
    assert len(collector.spans) > 40
    assert [canaries_in(body) for body in collector.bodies if canaries_in(body)] == []
    # pytest catches the SDK's own records, too, which nobody else is shown.
    said = [record.getMessage() for record in caplog.records if not record.name.startswith("opentelemetry")]
    assert canaries_in("\n".join(said)) == []


async def test_a_collector_that_is_down_fails_no_request(
    traced: Traced, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}/s3cret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    monkeypatch.setattr(otlp._sdk_handler, "_logged_at_s", {})
    async with traced() as client:
        for number in range(50):
            assert (await client.embed(str(number))).status == 200
    said = [record for record in caplog.records if record.name == "proxy.telemetry.otlp"]
    lines = [record.getMessage() for record in said]
    assert sorted(re.sub(r"[\d.]+s", "1s", line).removesuffix(" (logged at most once a minute)") for line in lines) == [
        "stopping: the collector did not accept all traces within 2 s",
        "traces: Queue full, dropping Span.",
        "traces: Transient error ConnectionError encountered while exporting spans batch, retrying in 1s.",
    ]
    assert not [record for record in said if record.exc_info]


async def test_a_collector_that_hangs_does_not_delay_the_exit(
    traced: Traced, collector: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()

    async def hold() -> None:
        await gate.wait()

    collector.hold = hold
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    async with traced() as client:
        await client.embed("a")
    assert len(collector.bodies) == 1
    assert "the collector did not accept all traces within 2 s" in caplog.text
    gate.set()


async def test_spans_are_flushed_by_a_process_that_ends(
    collector: Receiver, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    arguments = ("--upstream", upstream.base_url, "--store", "memory:", "--traces", "otlp")
    process = await asyncio.to_thread(Process, tmp_path, free_port(), *arguments)
    body = {"model": "m", "input": "x"}
    async with ClientSession() as session, session.post(f"{process.base_url}/embeddings", json=body) as answer:
        assert answer.status == 200
    status, _ = await asyncio.to_thread(process.stop, signal.SIGTERM)
    assert status == 0
    assert collector.tree() == [ROUTE, "  cache.lookup", "  flight", "  upstream"]


# --- off

ASKS = """
import asyncio, sys
from aiohttp import ClientSession
from proxy.cli import commands as cli
from proxy.app import running
from tests.support.settings import settings_for
from tests.support.scripted import ScriptedUpstream

async def main():
    async with ScriptedUpstream().serving() as upstream:
        async with running(settings_for(upstream)) as proxy, ClientSession() as session:
            for _ in range(2):
                async with session.post(proxy.base_url + "/embeddings", json={"model": "m", "input": "x"}) as answer:
                    assert answer.status == 200

asyncio.run(main())
print([name for name in sys.modules if name.startswith("opentelemetry") or name == "proxy.telemetry.otlp"])
"""


def test_off_imports_nothing() -> None:
    ended = subprocess.run([sys.executable, "-c", ASKS], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


async def test_off_forwards_the_clients_trace_context_unchanged(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy()
    await client.embed("a", headers={"traceparent": TRACEPARENT, "tracestate": "one=1"})
    assert upstream.calls[0].headers["traceparent"] == TRACEPARENT
    assert upstream.calls[0].headers["tracestate"] == "one=1"


def test_without_the_extra_the_error_names_what_to_install() -> None:
    program = "import sys; sys.modules['opentelemetry'] = None; from proxy.cli.commands import main; main()"
    arguments = ["serve", "--store", "memory:", "--port", "0", "--admin-port", "0", "--traces", "otlp"]
    ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("embedding-proxy: --traces otlp needs OpenTelemetry")
    assert ended.stderr.endswith(".venv/bin/pip install '.[otel]'\n")
    assert ended.stderr.count("\n") == 1
