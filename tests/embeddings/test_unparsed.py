"""A miss that begins before it is parsed ends as a parsed one does, whatever happens while it is under way."""

import asyncio
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from aiohttp import web
from prometheus_client import Gauge

from proxy.app import data_port
from proxy.config.settings import StoreSetting
from proxy.embeddings.response_body import LARGE_BYTES
from proxy.embeddings.route import EmbeddingsRoute
from proxy.embeddings.unparsed import UnparsedRequests
from proxy.http.connection import Connection
from proxy.http.long_response import MAX_LONG_BYTES
from proxy.http.server import Server
from tests.conftest import StartProxy
from tests.embeddings.test_fast_path import Parsed, Wire, request, told, wire
from tests.embeddings.test_request_memo import counters
from tests.support.client import Client
from tests.support.gate import Gate
from tests.support.scripted import Call, Reply, ScriptedUpstream, error_reply
from tests.support.site import until

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Parsed:
    return Parsed(monkeypatch)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    """The servers of the proxies that are started."""
    started: list[Server] = []

    class Kept(Server):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            started.append(self)

        def sweep(self) -> None:
            """Tests sweep when they want to."""

    monkeypatch.setattr(data_port, "Server", Kept)
    return started


@pytest.fixture
def adopted(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each request that was parsed after it had begun."""
    taken: list[None] = []
    adopt = EmbeddingsRoute.adopt

    async def noting(self: EmbeddingsRoute, *given: Any) -> web.StreamResponse:
        taken.append(None)
        return await adopt(self, *given)

    monkeypatch.setattr(EmbeddingsRoute, "adopt", noting)
    return taken


def body(given: Any, **members: Any) -> bytes:
    return orjson.dumps({"model": "m", "input": given, "encoding_format": "base64"} | members)


class Site(NamedTuple):
    """A proxy in front of ``upstream``, and what it has logged."""

    client: Client
    server: Server
    upstream: ScriptedUpstream
    lines: list[str]

    @property
    def connection(self) -> Connection:
        connection = self.server.connections[-1]
        assert isinstance(connection, Connection)
        return connection

    async def quiet(self) -> None:
        """Wait until every request and every fetch has ended."""
        fetcher, writer = self.client.proxy.fetcher, self.client.proxy.cache._writer
        tasks = (fetcher._fetches, fetcher._batcher._calls, writer.tasks)
        await until(lambda: not (any(map(len, tasks)) or _in_flight(self)))


def _in_flight(site: Site) -> float:
    return _value(site.client.proxy.metrics.requests_in_flight)


def _held_bytes(site: Site) -> float:
    return _value(site.client.proxy.metrics.held_bytes)


def _value(gauge: Gauge) -> float:
    (metric,) = gauge.collect()
    return metric.samples[0].value


def garbage(call: Call) -> web.Response:
    return web.Response(body=b'{"data": [', content_type="application/json")


def another_model(call: Call) -> web.Response:
    return web.json_response({**call_of(call), "model": "moved"})


def call_of(call: Call) -> dict[str, Any]:
    return ScriptedUpstream().answer_to(call.json)


def without_vector(call: Call) -> web.Response:
    good = call_of(call)
    good["data"][0]["embedding"] = None
    return web.json_response(good)


async def cut_off(call: Call) -> web.StreamResponse:
    assert call.request.transport is not None
    call.request.transport.abort()
    return web.Response()


def set_cookie(call: Call) -> web.Response:
    return web.json_response(call_of(call), headers={"Set-Cookie": "a=1", "x-request-id": "theirs"}, status=201)


REPLIES: list[Reply | None] = [
    None,
    None,
    None,
    error_reply(400, {"error": {"message": "no"}}),
    error_reply(401, {"error": {"message": "no"}}),
    error_reply(429, {"error": {"message": "slow"}}),
    error_reply(500, {"error": {"message": "oh"}}),
    garbage,
    another_model,
    without_vector,
    set_cookie,
    cut_off,
]
EVENTS = ["sweep", "sweep", "follow", "half", "close", "stop", "drain", "leave", "join"]
GIVEN: list[Any] = ["new", ["new", "newer"], ["new", "a"], ["a", "new", "new"]]


class Scenario(NamedTuple):
    number: int
    has_id: bool
    given: Any
    events: list[str]
    reply: Reply | None
    late_events: list[str]  # once the response is on its way

    @classmethod
    def random(cls, rng: random.Random, number: int, *, has_store: bool) -> "Scenario":
        # With a store it depends on the disk whether another client is quicker than a write.
        possible = EVENTS[:-1] if has_store else EVENTS
        # And once the response is on its way, it depends on the network whether another client is quicker.
        events = [rng.sample(possible, rng.choice([0, 1, 1, 2])), rng.sample(EVENTS[:-1], rng.choice([0, 0, 1]))]
        return cls(number, rng.random() < 0.5, rng.choice(GIVEN), events[0], rng.choice(REPLIES), events[1])

    def texts(self, given: Any) -> Any:
        """Texts of this scenario's own."""
        return [self.texts(text) for text in given] if isinstance(given, list) else f"{given} {self.number}"

    def request(self, given: Any) -> bytes:
        fields = (
            (f"X-Request-Id: {self.number}-{len(given)}-{given[0]}", f"traceparent: {TRACE}") if self.has_id else ()
        )
        return request(body(self.texts(given)), *fields, key=f"Bearer sk-{self.number}")


class Seen(NamedTuple):
    responses: list[bytes]
    calls: list[tuple[bytes, tuple[tuple[str, str], ...]]]  # each with its header fields
    counted: dict[str, float]
    logged: list[Any]
    held_bytes: float
    in_flight: float


async def play(site: Site, scenario: Scenario) -> Seen:
    """What there is to see of a request for missing items, on a connection that knows its head."""
    site.upstream.reply = None
    async with wire(site.client) as line:
        for text in "ab":
            await line.ask(scenario.request(text))
        await site.quiet()
        site.client.proxy.log.flush()
        del site.lines[:], site.upstream.calls[:]
        before = await counters(site.client)
        responses = await _play(site, line, scenario)
    await site.quiet()
    site.client.proxy.lifecycle.is_draining = False
    after = await counters(site.client)
    site.client.proxy.log.flush()
    return Seen(
        responses,
        sorted((call.body, tuple(call.headers.items())) for call in site.upstream.calls),
        # Discards are noticed when the store's log is next read, which is any time.
        {name: after[name] - before[name] for name in after if after[name] != before[name] and "discard" not in name},
        sorted(
            [str(line.get(name)) for name in ("outcome", "status", "items", "cached", "model", "trace_id", "cause")]
            for line in map(orjson.loads, "".join(site.lines).splitlines())
        ),
        _held_bytes(site),
        _in_flight(site),
    )


async def _play(site: Site, line: Wire, scenario: Scenario) -> list[bytes]:
    gate = Gate(site.upstream)
    gate.answer = scenario.reply or site.upstream.embed
    connection, others = site.connection, list[asyncio.Task[Any]]()
    connection.data_received(scenario.request(scenario.given))
    await gate.calls(1)
    expected = 1
    for event in scenario.events:
        expected += _happen(site, connection, scenario, event, others)
        await asyncio.sleep(0)
    gate.open()
    site.upstream.reply = gate.answer
    for event in scenario.late_events:
        expected += _happen(site, connection, scenario, event, others)
        await asyncio.sleep(0)
    said = await _read(line, expected)
    joined = [response.body for response in await asyncio.gather(*others)]
    return [*said, *map(_told, joined)]


def _happen(
    site: Site, connection: Connection, scenario: Scenario, event: str, others: list["asyncio.Task[Any]"]
) -> int:
    """Let something happen on a connection. Returns how many requests it has sent."""
    if event == "sweep":
        Server.sweep(site.server)
    elif event == "drain":
        site.client.proxy.lifecycle.is_draining = True
    elif connection.transport is None:
        pass
    elif event == "follow":
        connection.data_received(scenario.request("b"))
        return 1
    elif event == "half":
        connection.data_received(b"POST /v1/embed")
    elif event == "close":
        connection.eof_received()
    elif event == "stop":
        connection.retire()
    elif event == "leave":
        connection.transport.abort()
    elif event == "join":
        key = f"Bearer sk-{scenario.number}"
        others.append(asyncio.create_task(site.client.post(body(scenario.texts("new")), key=key)))
    return 0


async def _read(line: Wire, expected: int) -> list[bytes]:
    """Up to ``expected`` responses, until the connection ends."""
    said: list[bytes] = []
    try:
        while len([one for one in said if not one.startswith(b"HTTP/1.1 100 ")]) < expected:
            head = await line.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            said.append(_told(head + (await line.reader.readexactly(int(length[1])) if length else b"")))
    except (asyncio.IncompleteReadError, ConnectionError):
        said.append(b"closed")
    return said


def _told(response: bytes) -> bytes:
    given_id = re.search(rb"X-Request-Id: \d+-\d-\w", response)
    return b"%b %b" % (told(response), given_id[0] if given_id else b"")


@pytest.mark.parametrize("seed", range(4))
async def test_it_ends_as_a_parsed_one_does(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    servers: list[Server],
    adopted: list[None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    seed: int,
) -> None:
    sites = []
    for number in range(2):
        lines: list[str] = []
        store = StoreSetting(path=tmp_path / f"{number}.sqlite3" if seed % 2 else None)
        client = await start_proxy(write_log=lines.append, log_format="json", rate_limit_wait_s=0.0, store=store)
        sites.append(Site(client, servers[-1], upstream, lines))
    rng, handle_bytes = random.Random(seed), UnparsedRequests.handle_bytes
    for number in range(16):
        scenario = Scenario.random(rng, number, has_store=bool(seed % 2))
        seen = []
        for site, is_parsed in zip(sites, (False, True), strict=True):
            monkeypatch.setattr(UnparsedRequests, "handle_bytes", (lambda *_: None) if is_parsed else handle_bytes)
            before = len(adopted)
            seen.append(await play(site, scenario))
            assert not (is_parsed and len(adopted) > before)
        for name, first, second in zip(Seen._fields, *seen, strict=True):
            assert first == second, (name, scenario)
        assert (seen[0].held_bytes, seen[0].in_flight) == (0, 0), scenario
    assert len(adopted) > 5


async def learnt(line: Wire, client: Client) -> None:
    for text in "ab":
        assert (await line.ask(request(body(text)))).startswith(b"HTTP/1.1 200 ")


async def test_what_a_client_that_left_has_asked_for_is_kept_and_counted_once(
    start_proxy: StartProxy, upstream: ScriptedUpstream, servers: list[Server], parsed: Parsed
) -> None:
    lines: list[str] = []
    client = await start_proxy(write_log=lines.append)
    site = Site(client, servers[-1], upstream, lines)
    async with wire(client) as line:
        await learnt(line, client)
        gate, calls, before = Gate(upstream), len(upstream.calls), parsed.count
        line.writer.write(request(body("new")))
        await gate.calls(1)
        assert site.connection.transport is not None
        site.connection.transport.abort()
        await until(lambda: not _in_flight(site))
        gate.open()
        await site.quiet()
    assert (await client.post(body("new"))).cache == "HIT"
    assert (len(upstream.calls), parsed.count) == (calls + 1, before + 1)
    client.proxy.log.flush()
    assert [line.split()[1:3] for line in "".join(lines).splitlines()][-2:] == [["error", "499"], ["hit", "200"]]


@pytest.mark.parametrize("encoding", ["base64", "float"])
async def test_a_long_response_is_written_in_turns(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    servers: list[Server],
    adopted: list[None],
    parsed: Parsed,
    encoding: str,
) -> None:
    lines: list[str] = []
    client = await start_proxy(write_log=lines.append)
    site = Site(client, servers[-1], upstream, lines)
    upstream.dimensions = 4096
    many = [f"text {number}" for number in range(64)]
    async with wire(client) as line:
        for text in "ab":
            await line.ask(request(body(text, encoding_format=encoding)))
        before = parsed.count
        written = await line.ask(request(body(many, encoding_format=encoding)))
        assert (len(adopted), parsed.count) == (0, before)
        head, _, content = written.partition(b"\r\n\r\n")
        assert b"X-Cache: MISS" in head
        assert LARGE_BYTES < len(content) < MAX_LONG_BYTES
        await site.quiet()
        assert _held_bytes(site) == 0
        again = await line.ask(request(body(many, encoding_format=encoding)))
    assert again.partition(b"\r\n\r\n")[2].partition(b'"usage"')[0] == content.partition(b'"usage"')[0]
    client.proxy.log.flush()
    assert [line.split()[1:3] for line in "".join(lines).splitlines()][-2:] == [["miss", "200"], ["hit", "200"]]


async def test_a_longer_response_is_streamed_by_the_parsed_request(
    client: Client, upstream: ScriptedUpstream, adopted: list[None], parsed: Parsed
) -> None:
    upstream.dimensions = 4096
    many = [f"text {number}" for number in range(200)]
    async with wire(client) as line:
        await learnt(line, client)
        before = parsed.count
        assert b"X-Cache: MISS" in await line.ask(request(body(many)))
        assert (len(adopted), parsed.count) == (1, before)
    assert upstream.items[orjson.dumps(many[0]).decode()] == 1


async def test_a_body_over_the_limit_is_refused(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(max_body_bytes=200)
    async with wire(client) as line:
        await learnt(line, client)
        calls = len(upstream.calls)
        assert b" 413 " in await line.ask(request(body("x" * 200)))
    assert len(upstream.calls) == calls


async def test_requests_of_several_connections_are_merged(client: Client, upstream: ScriptedUpstream) -> None:
    async with wire(client) as first, wire(client) as second, wire(client) as third:
        lines = [first, second, third]
        for line in lines:
            await learnt(line, client)
        gate = Gate(upstream)
        asks = []
        for number, line in enumerate(lines):
            asks.append(asyncio.create_task(line.ask(request(body(f"text {number}")))))
            await gate.calls(1)
        await until(lambda: client.proxy.fetcher._batcher._queue.items == 3)
        gate.open()
        assert all(b"X-Cache: MISS" in answer for answer in await asyncio.gather(*asks))
    assert max(len(call.items) for call in upstream.calls) == 2
