"""A request with the same bytes gets the same response without being parsed."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import ClassVar

import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from proxy.access import client_keys
from proxy.config.settings import UpstreamSetting
from proxy.embeddings import request_memo
from proxy.embeddings.progress import Progress
from proxy.embeddings.response_body import BodyBuilder
from proxy.embeddings.route import EmbeddingsRoute
from proxy.http import timeouts
from proxy.http.connection import Connection, ResponseLater
from proxy.http.long_response import LongResponse, Response
from proxy.http.server import Server
from tests.conftest import StartProxy
from tests.embeddings.test_request_memo import counters
from tests.support.client import KEY, Client
from tests.support.scripted import ScriptedUpstream, error_reply
from tests.support.site import until

BODY = orjson.dumps({"model": "m", "input": ["a", "b", "a"], "encoding_format": "base64"})
_CHANGING = re.compile(rb"(Date|X-Request-Id): [^\r]*\r\n")


def request(
    body: bytes = BODY, *fields: str, target: str = "/v1/embeddings", key: str = KEY, version: str = "1.1"
) -> bytes:
    lines = [
        f"POST {target} HTTP/{version}",
        "Host: h",
        "Content-Type: application/json",
        f"Authorization: {key}",
        f"Content-Length: {len(body)}",
        *fields,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Wire:
    """One connection to a proxy, and the bytes on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, *pieces: bytes) -> bytes:
        """The response to a request that is sent in pieces, each of which the proxy reads by itself."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            for _ in range(20):
                await asyncio.sleep(0)
        return await self.answer()

    async def answer(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None, head
        return head + await self.reader.readexactly(int(length[1]))


@asynccontextmanager
async def wire(client: Client) -> AsyncIterator[Wire]:
    host, port = client.origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


class Parsed:
    """Counts the embeddings requests that were parsed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        handle = EmbeddingsRoute.handle

        async def counting(route: EmbeddingsRoute, request: web.BaseRequest, progress: Progress) -> web.StreamResponse:
            self.count += 1
            return await handle(route, request, progress)

        monkeypatch.setattr(EmbeddingsRoute, "handle", counting)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Parsed:
    return Parsed(monkeypatch)


def told(answer: bytes) -> bytes:
    return _CHANGING.sub(b"", answer)


async def known(client: Client, parsed: Parsed, sent: bytes | None = None) -> bytes:
    """Ask until the request is known by its bytes; returns a response from before."""
    sent = request() if sent is None else sent
    async with wire(client) as line:
        responses = [await line.ask(sent) for _ in range(4)]
        before = parsed.count
        await line.ask(sent)
        assert parsed.count == before
    return responses[-1]


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_its_response_is_the_same(client: Client, parsed: Parsed, encoding: str) -> None:
    sent = request(orjson.dumps({"model": "m", "input": ["a", "b", "a"], "encoding_format": encoding}))
    async with wire(client) as line:
        responses = [await line.ask(sent) for _ in range(6)]
    assert parsed.count == 4
    assert b"X-Cache: MISS" in responses[0]
    assert len({told(answer) for answer in responses[1:]}) == 1
    assert b"X-Cache: HIT" in responses[5]
    ids = [re.search(rb"X-Request-Id: (\S+)", answer) for answer in responses]
    assert len({match[1] for match in ids if match}) == 6
    assert all(b"\r\nDate: " in answer for answer in responses)


async def test_it_is_counted_and_logged_the_same(start_proxy: StartProxy, parsed: Parsed) -> None:
    lines: list[str] = []
    client = await start_proxy(write_log=lines.append)
    counted = []
    async with wire(client) as line:
        await line.ask(request())
        for _ in range(5):
            before = await counters(client)
            await line.ask(request())
            after = await counters(client)
            counted.append({name: value - before[name] for name, value in after.items() if value != before[name]})
    assert parsed.count == 4
    assert all(first == second for first, second in pairwise(counted))
    assert len(counted[0]) >= 6
    client.proxy.log.flush()
    said = [line.split() for line in "".join(lines).splitlines()]
    assert [line[1:3] + line[5:7] for line in said][1:] == [["hit", "200", "3/3", "m"]] * 5
    assert len({line[-1] for line in said}) == 6


async def test_head_and_body_may_arrive_separately(client: Client, parsed: Parsed) -> None:
    whole = await known(client, parsed)
    before = parsed.count
    head, body = request()[: -len(BODY)], BODY
    async with wire(client) as line:
        for pieces in ([head, body], [request()], [head, body]):
            assert told(await line.ask(*pieces)) == told(whole)
        assert parsed.count == before
        assert told(await line.ask(head, body[:5], body[5:])) == told(whole)
        assert told(await line.ask(head[:20], head[20:], body)) == told(whole)
        assert told(await line.ask(head + body[:5], body[5:])) == told(whole)
    assert parsed.count == before + 3


async def test_a_known_head_with_another_body_is_another_request(client: Client, parsed: Parsed) -> None:
    await known(client, parsed)
    other = BODY.replace(b'"b"', b'"c"')
    async with wire(client) as line:
        answer = await line.ask(request()[: -len(BODY)], other)
    assert b"X-Cache: PARTIAL" in answer
    data = orjson.loads(answer.partition(b"\r\n\r\n")[2])["data"]
    assert [datum["embedding"] for datum in data] == (await client.post(other)).embeddings


async def test_pieces_are_learnt_from_and_put_up_with(client: Client, parsed: Parsed) -> None:
    head = request()[: -len(BODY)]
    async with wire(client) as line:
        for _ in range(4):
            await line.ask(head[:9], head[9:], BODY[:7], BODY[7:])
        before = parsed.count
        await line.ask(request())
        await line.ask(head, BODY)
    assert parsed.count == before


async def test_what_is_dropped_with_an_error_is_not_what_came_before_it(client: Client, parsed: Parsed) -> None:
    await known(client, parsed)
    async with wire(client) as line:
        good = await line.ask(request()[: -len(BODY)], BODY + b"\0")
        assert b" 200 " in good.partition(b"\r\n")[0]
        assert b" 400 " in (await line.reader.read()).partition(b"\r\n")[0]


async def test_empty_lines_end_no_request(client: Client, parsed: Parsed) -> None:
    """The parser skips them before a request, and a head that seemed to end with them would end too soon."""
    other = b"DELETE /v1/files/1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX: "
    refused = b"TRACE / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n" % len(other)
    refused += b"X: " + b"x" * (len(other) - len(refused) - 7) + b"\r\n\r\n"
    for _ in range(5):
        async with wire(client) as line:
            assert b" 400 " in (await line.ask(b"\n\r\n\r\n" + refused)).partition(b"\r\n")[0]
            await line.ask(other + request())
    async with wire(client) as line:
        answer = await line.ask(other + request())
    assert b"X-Cache" not in answer


async def test_a_failure_is_an_error_of_the_proxys_as_any_other(
    client: Client, parsed: Parsed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await known(client, parsed)
    monkeypatch.setattr(BodyBuilder, "ordered_parts", lambda *_: 1 / 0)
    async with wire(client) as line:
        answer = await line.ask(request())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b'"code":"internal_error"' in answer
    assert "unexpected error in the fast path" in caplog.text


async def test_a_key_revoked_while_its_body_arrives_admits_no_later_request(
    start_proxy: StartProxy, upstream: ScriptedUpstream, parsed: Parsed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys"
    key = client_keys.add(path, "goes")
    client_keys.add(path, "stays")
    own = UpstreamSetting(name="s", base_url=upstream.base_url, key="sk-held")
    client = await start_proxy(upstream=own, client_keys=path)
    sent = request(key=f"Bearer {key}")
    async with wire(client) as line:
        for _ in range(3):
            await line.ask(sent)
        line.writer.write(sent[: 1 - len(BODY)])
        await until(lambda: parsed.count == 4)
        client_keys.revoke(path, "goes")
        assert client.proxy.client_keys is not None
        client.proxy.client_keys.reload()
        assert b" 200 " in (await line.ask(BODY[1:])).partition(b"\r\n")[0]
    async with wire(client) as line:
        assert b" 401 " in (await line.ask(sent)).partition(b"\r\n")[0]


async def test_pipelined_requests_get_responses_in_order(client: Client, parsed: Parsed) -> None:
    whole = await known(client, parsed)
    other = request(orjson.dumps({"model": "m", "input": "other"}))
    async with wire(client) as line:
        line.writer.write(request() + other + request())
        responses = [await line.answer() for _ in range(3)]
        assert [told(answer) == told(whole) for answer in responses] == [True, False, True]
        assert told(await line.ask(request())) == told(whole)


async def test_what_lies_in_another_requests_body_is_no_request(
    client: Client, upstream: ScriptedUpstream, parsed: Parsed
) -> None:
    await known(client, parsed)
    inner = request()
    async with wire(client) as line:
        head = b"POST /v1/files HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (2 * len(inner))
        await line.ask(head, inner, inner)
    assert upstream.calls[-1].body == inner * 2
    async with wire(client) as line:
        await line.ask(
            b"POST /v1/files HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(inner),
            inner,
            b"\r\n0\r\n\r\n",
        )
        assert upstream.calls[-1].body == inner
        before = parsed.count
        await line.ask(inner)  # how long chunks were is not known, so the parser has to tell
        assert parsed.count == before + 1


async def test_what_follows_half_a_head_is_part_of_it(client: Client, parsed: Parsed) -> None:
    await known(client, parsed)
    async with wire(client) as line:
        answer = await line.ask(b"GET / HTTP/1.1\r\nHost: h\r\nX-A: ", request())
    assert told(answer) != told(await known(client, parsed))


@pytest.mark.parametrize(
    "sent",
    [
        request(BODY, "X-Request-Id: mine"),
        request(BODY, "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        request(BODY, "Connection: Upgrade", "Upgrade: h2c"),
        request(BODY, "Cache-Control: max-age=100"),
        request(orjson.dumps({"model": "m", "input": ["long " * 4000]})),
    ],
    ids=["id", "trace", "upgrade", "directive", "size"],
)
async def test_a_request_that_needs_its_own_response_is_parsed(client: Client, parsed: Parsed, sent: bytes) -> None:
    for _ in range(5):
        async with wire(client) as line:
            answer = await line.ask(sent)
    assert b"X-Cache: HIT" in answer
    assert parsed.count == 5


@pytest.mark.parametrize("sent", [request(BODY, "Connection: close"), request(version="1.0")], ids=["close", "1.0"])
async def test_what_ends_its_connection_is_parsed(client: Client, parsed: Parsed, sent: bytes) -> None:
    for _ in range(5):
        async with wire(client) as line:
            line.writer.write(sent)
            assert b"200 OK" in await line.reader.read()
    assert parsed.count == 5


async def test_a_credential_that_was_refused_is_asked_about(
    client: Client, upstream: ScriptedUpstream, parsed: Parsed
) -> None:
    await known(client, parsed)
    upstream.reply = error_reply(401, {"error": {"message": "no"}})
    assert (await client.embed("new")).status == 401
    async with wire(client) as line:
        assert b" 401 " in await line.ask(request())


async def test_entries_past_their_ttl_are_fetched_again(start_proxy: StartProxy, parsed: Parsed) -> None:
    now = [1000.0]
    client = await start_proxy(clock=lambda: now[0], ttl_s=60.0)
    await known(client, parsed)
    now[0] += 61.0
    async with wire(client) as line:
        assert b"X-Cache: MISS" in await line.ask(request())


async def test_what_memory_has_lost_is_looked_for(client: Client, parsed: Parsed) -> None:
    await known(client, parsed)
    client.proxy.cache.memory._entries.clear()
    async with wire(client) as line:
        assert b"X-Cache: MISS" in await line.ask(request())


async def test_a_client_whose_key_was_revoked_is_not_admitted(
    start_proxy: StartProxy, upstream: ScriptedUpstream, parsed: Parsed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys"
    keys = {name: client_keys.add(path, name) for name in ("stays", "goes")}
    own = UpstreamSetting(name="s", base_url=upstream.base_url, key="sk-held")
    client = await start_proxy(upstream=own, client_keys=path)
    sent = {name: request(key=f"Bearer {key}") for name, key in keys.items()}
    for one in sent.values():
        await known(client, parsed, one)
    client_keys.revoke(path, "goes")
    assert client.proxy.client_keys is not None
    client.proxy.client_keys.reload()
    async with wire(client) as line:
        assert b" 401 " in await line.ask(sent["goes"])
        assert b"X-Cache: HIT" in await line.ask(sent["stays"])
    before = parsed.count
    async with wire(client) as line:
        await line.ask(sent["stays"])
    assert parsed.count == before


async def test_a_draining_proxy_closes_after_the_response(client: Client, parsed: Parsed) -> None:
    await known(client, parsed)
    client.proxy.lifecycle.is_draining = True
    async with wire(client) as line:
        line.writer.write(request())
        answer = await line.reader.read()
    assert b"\r\nConnection: close\r\n" in answer
    assert b"X-Cache: HIT" in answer


class Kept(dict[bytes, object]):
    """In Moka's place, to see what is in it."""

    all: ClassVar[list["Kept"]] = []

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()
        self.all.append(self)

    set = dict.__setitem__


async def test_no_text_and_no_credential_is_kept(
    start_proxy: StartProxy, parsed: Parsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_memo, "Moka", Kept)
    monkeypatch.setattr(Kept, "all", [])
    client = await start_proxy()
    await known(client, parsed, request(orjson.dumps({"model": "m", "input": ["a canary of a text"]})))
    assert [len(kept) for kept in Kept.all] == [1, 1, 1]
    assert "canary" not in repr(Kept.all)
    assert "sk-test" not in repr(Kept.all)


# --- the connection by itself, with somebody who knows a few requests


def post(number: int) -> bytes:
    body = b"%d" % number * (number + 1)
    return b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (number, len(body), body)


def echo(target: str, body: bytes) -> bytes:
    said = b"%b %b" % (target.encode(), body)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said)


KNOWN = {post(number): echo(f"/{number}", b"%d" % number * (number + 1)) for number in range(3)}
HEADS = {sent[: sent.index(b"\r\n\r\n") + 4] for sent in KNOWN}
OTHERS = [
    post(7),
    b"GET /get HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST /chunks HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"POST /empty HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
    # A known request as another's body.
    b"POST /outer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(post(1)), post(1)),
    b"\r\n" + post(2),
]


class Knows:
    """Takes known requests for repeats, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def handle_bytes(self, sent: bytes, _: Connection) -> Response | LongResponse | ResponseLater | None:
        answer = KNOWN.get(sent)
        self.count += answer is not None
        return None if answer is None else [answer[:10], answer[10:]]

    def knows_head(self, sent: bytes) -> bool:
        return sent in HEADS


class EchoSite:
    """A server that says what was asked of it."""

    def __init__(self, bytes_handler: Knows | None) -> None:
        self.time = 0.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.seen: list[str] = []
        self.server = Server(
            self._handle, max_connections=10, bytes_handler=bytes_handler, clock=lambda: self.time, access_log=None,
            handler_cancellation=True,
        )  # fmt: skip

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append(request.path)
        await self.gate.wait()
        return web.Response(body=b"%b %b" % (request.path.encode(), await request.read()))

    @property
    def connection(self) -> Connection:
        connection = self.server.connections[-1]
        assert isinstance(connection, Connection)
        return connection

    @asynccontextmanager
    async def line(self) -> AsyncIterator[Wire]:
        runner = web.ServerRunner(self.server, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
        try:
            await until(lambda: len(self.server.connections) == 1)
            yield Wire(reader, writer)
        finally:
            writer.close()
            await runner.cleanup()

    def give(self, data: bytes) -> Awaitable[None]:
        """Hand the connection bytes as its transport would, and let it do what it can."""
        self.connection.data_received(data)
        return settled()


async def settled() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def said(responses: bytes) -> list[bytes]:
    """The bodies of consecutive responses."""
    bodies = []
    while responses:
        head, _, rest = responses.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None, head
        bodies.append(rest[: int(length[1])])
        responses = rest[int(length[1]) :]
    return bodies


@given(
    st.lists(st.sampled_from([*KNOWN, *KNOWN, *OTHERS]), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 600), st.booleans()), max_size=8),
)
def test_wherever_a_stream_is_cut_the_responses_are_those_of_the_parser_alone(
    requests: list[bytes], cuts: list[tuple[int, bool]]
) -> None:
    stream = b"".join(requests)
    places = {min(at, len(stream)): is_pause for at, is_pause in cuts}
    ends = sorted({0, len(stream), *places})

    async def run(*, in_pieces: bool) -> list[bytes]:
        site = EchoSite(Knows() if in_pieces else None)
        async with site.line() as line:
            if in_pieces:
                for start, end in pairwise(ends):
                    site.connection.data_received(stream[start:end])
                    if places.get(end, True):
                        await settled()
            else:
                site.connection.data_received(stream)
            site.server.sweep()
            responses = b""
            while len(said(responses)) < len(requests):
                responses += await Wire(line.reader, line.writer).answer()
            return said(responses)

    assert asyncio.run(run(in_pieces=True)) == asyncio.run(run(in_pieces=False))


@pytest.fixture
def knows() -> Knows:
    return Knows()


@pytest.fixture
async def site(knows: Knows) -> EchoSite:
    return EchoSite(knows)


async def test_a_known_request_is_not_parsed(site: EchoSite, knows: Knows) -> None:
    async with site.line() as line:
        for number in (0, 7, 1, 0):
            line.writer.write(post(number))
            assert (await line.answer()).endswith(b"/%d %b" % (number, b"%d" % number * (number + 1)))
    assert (site.seen, knows.count) == (["/7"], 3)


async def test_it_waits_for_earlier_responses(site: EchoSite, knows: Knows) -> None:
    async with site.line() as line:
        site.gate.clear()
        await site.give(post(7))
        await site.give(post(1))
        assert knows.count == 0
        site.gate.set()
        assert said(await line.answer() + await line.answer()) == [b"/7 77777777", b"/1 11"]


async def test_it_waits_for_a_client_that_does_not_read(site: EchoSite, knows: Knows) -> None:
    async with site.line() as line:
        site.connection.pause_writing()
        await site.give(post(1))
        assert knows.count == 0
        site.connection.resume_writing()
        assert said(await line.answer()) == [b"/1 11"]


async def test_a_head_whose_body_does_not_arrive_is_parsed_at_the_next_sweep(site: EchoSite, knows: Knows) -> None:
    async with site.line() as line:
        head, _, body = post(2).partition(b"\r\n\r\n")
        await site.give(head + b"\r\n\r\n")
        assert site.seen == []
        site.server.sweep()
        await settled()
        assert site.seen == ["/2"]
        await site.give(body)
        assert said(await line.answer()) == [b"/2 222"]
        await site.give(post(1))
        assert said(await line.answer()) == [b"/1 11"]
    assert (site.seen, knows.count) == (["/2"], 1)


async def test_each_repeat_restarts_the_idle_timeout(site: EchoSite, knows: Knows) -> None:
    async with site.line() as line:
        for _ in range(4):
            await site.give(post(1))
            await line.answer()
            site.time += timeouts.IDLE_TIMEOUT_S
            site.server.sweep()
            assert site.connection.transport is not None
        site.time += 1
        site.server.sweep()
        assert await line.reader.read() == b""
    assert knows.count == 4


async def test_a_connection_that_ends_sends_no_response(site: EchoSite, knows: Knows) -> None:
    async with site.line():
        connection = site.connection
        connection.close()
        connection.data_received(post(1))
    assert knows.count == 0


async def test_a_large_request_is_not_kept(site: EchoSite) -> None:
    async with site.line() as line:
        site.gate.clear()
        await site.give(b"POST /large HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000)
        await site.give(b"x" * 100_000)
        assert len(site.connection._recorder._recorded) < 100
        site.gate.set()
        await line.answer()
        await site.give(post(1))
        assert said(await line.answer()) == [b"/1 11"]
    assert site.seen == ["/large"]
