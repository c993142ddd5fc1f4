"""A request whose head is known to its connection gets the response that it would get if it were parsed."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from proxy.access import client_keys
from proxy.cache.cache import Cache
from proxy.config.settings import StoreSetting, UpstreamSetting
from proxy.embeddings import known_head
from proxy.embeddings.reader import Reader
from proxy.embeddings.response_body import LARGE_BYTES
from proxy.errors import Overloaded
from proxy.http.connection import Connection, ResponseLater
from proxy.http.head_template import HeadTemplate
from proxy.http.long_response import LongResponse, Response
from proxy.protocol.providers import PROVIDERS
from tests.conftest import StartProxy
from tests.embeddings.test_fast_path import (
    OTHERS,
    EchoSite,
    Knows,
    Parsed,
    Wire,
    echo,
    post,
    request,
    said,
    settled,
    told,
    wire,
)
from tests.embeddings.test_request_memo import counters
from tests.support.client import Client
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.scripted import ScriptedUpstream, error_reply

PAIRS = 3_000 if IS_SLOW_PROFILE else 200  # of a request and the same in pieces
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Parsed:
    return Parsed(monkeypatch)


def body(given: Any = "a", **members: Any) -> bytes:
    return orjson.dumps({"model": "m", "input": given, "encoding_format": "base64", **members})


async def fill(client: Client, *texts: str, **members: Any) -> None:
    """Cache ``texts``."""
    for text in texts:
        assert (await client.post(body(text, **members))).status == 200


async def teach(line: Wire, *fields: str, **members: Any) -> None:
    """Make the connection know the head with these fields: two hits."""
    for text in "ab":
        assert b"X-Cache: HIT" in await line.ask(request(body(text, **members), *fields))


async def known(line: Wire, client: Client, *fields: str) -> None:
    await fill(client, "a", "b", "c", "d")
    await teach(line, *fields)


async def test_other_texts_are_not_parsed(client: Client, parsed: Parsed) -> None:
    async with wire(client) as line:
        await known(line, client)
        inputs: list[Any] = ["c", "d", ["c", "d", "c"]]
        expected = [(await client.post(body(given))).embeddings for given in inputs]
        before = parsed.count
        for given, embeddings in zip(inputs, expected, strict=True):
            answer = await line.ask(request(body(given)))
            assert b"X-Cache: HIT" in answer
            data = orjson.loads(answer.partition(b"\r\n\r\n")[2])["data"]
            assert [datum["embedding"] for datum in data] == embeddings
        assert parsed.count == before


async def after_an_empty_line(line: Wire, sent: bytes) -> bytes:
    """The response to a request that is parsed, because an empty line comes before it."""
    return await line.ask(b"\r\n" + sent)


TEXTS = ["c", "d", "é", "\U0001f600", 'a"b', "a:b", "\\", "input", '"input":']
ODD_INPUTS: list[Any] = ["", ["c", ""], [], [1, 2], [[1], [2]], {"text": "c"}, None, ["c", 1], ["c", None]]
MEMBERS: list[dict[str, Any]] = [
    {},
    {},
    {"encoding_format": "float"},
    {"dimensions": 3},
    {"model": "n"},
    {"x": {"input": 1}},
]
HEADS: list[tuple[str, ...]] = [(), ("X-Request-Id: i",), (f"traceparent: {TRACE}",)]


def random_body(rng: random.Random) -> bytes:
    given = rng.choice([rng.choice(TEXTS), rng.choices(TEXTS, k=rng.randint(1, 4)), rng.choice(ODD_INPUTS)])
    sent = body(given, **rng.choice(MEMBERS))
    return sent.replace(b'"model"', b'"input":"d","model"') if rng.random() < 0.05 else sent


def without_id(answer: bytes) -> bytes:
    return re.sub(rb'"id":"\w+"', b"", told(answer))


@pytest.mark.parametrize("seed", range(8))
async def test_the_response_is_that_of_a_parsed_request(
    start_proxy: StartProxy, upstream: ScriptedUpstream, seed: int, parsed: Parsed
) -> None:
    rng = random.Random(seed)
    names = ["generic", "openai", "voyage", "mistral", "cohere", "ollama", "nvidia", "gemini"]
    own = UpstreamSetting(name="s", base_url=upstream.base_url, provider=PROVIDERS[names[seed]])
    client = await start_proxy(upstream=own, reports_full_usage=seed % 2 == 0)
    fields: tuple[str, ...] = ()
    unparsed = 0
    async with wire(client) as whole, wire(client) as cut:
        for _ in range(PAIRS):
            if rng.random() < 0.05:
                fields = rng.choice(HEADS)
            sent = request(random_body(rng), *fields)
            before = parsed.count
            first = await whole.ask(sent)
            unparsed += parsed.count == before
            second = await after_an_empty_line(cut, sent)
            if b"X-Cache: HIT" in first:
                assert without_id(second) == without_id(first), sent
                assert re.findall(rb"X-Request-Id: i\r", first) == re.findall(rb"X-Request-Id: i\r", second)
            else:
                assert first[:12] == second[:12]
    assert unparsed > 10 or names[seed] == "nvidia", unparsed


async def test_it_is_counted_and_logged_the_same(start_proxy: StartProxy, parsed: Parsed) -> None:
    lines: list[str] = []
    client = await start_proxy(write_log=lines.append)
    counted = []
    async with wire(client) as line:
        await known(line, client)
        before = parsed.count
        for cut in (False, True):
            earlier = await counters(client)
            sent = request(body(["c", "d", "c"]))
            await (after_an_empty_line(line, sent) if cut else line.ask(sent))
            later = await counters(client)
            counted.append({name: value - earlier[name] for name, value in later.items() if value != earlier[name]})
        assert parsed.count == before + 1
    assert all(first == second for first, second in pairwise(counted))
    assert len(counted[0]) >= 6
    client.proxy.log.flush()
    said = [line.split() for line in "".join(lines).splitlines()]
    assert [line[1:3] + line[5:7] for line in said][-2:] == [["hit", "200", "3/3", "m"]] * 2


async def test_each_keeps_its_own_id_and_trace(start_proxy: StartProxy, parsed: Parsed) -> None:
    lines: list[str] = []
    client = await start_proxy(write_log=lines.append, log_format="json")
    async with wire(client) as line:
        await known(line, client, "X-Request-Id: first", f"traceparent: {TRACE}", "tracestate: a=1")
        before = parsed.count
        for number in range(10, 13):
            trace = TRACE.replace("4bf92f", f"4bf9{number}")
            fields = (f"X-Request-Id: mine-{number}", f"traceparent: {trace}", f"tracestate: a={number},b=2")
            assert b"\r\nX-Request-Id: mine-%d\r\n" % number in await line.ask(request(body("c"), *fields))
        assert parsed.count == before
    client.proxy.log.flush()
    said = [orjson.loads(line) for line in "".join(lines).splitlines()][-3:]
    assert [line["request_id"] for line in said] == ["mine-10", "mine-11", "mine-12"]
    assert [line["trace_id"][:6] for line in said] == ["4bf910", "4bf911", "4bf912"]


@pytest.mark.parametrize("space", ["", "\t", " \t"])
async def test_an_id_is_read_however_it_is_written(client: Client, space: str) -> None:
    await fill(client, "a", "b", "c")
    async with wire(client) as line:
        answers = [await line.ask(request(body(text), f"X-Request-Id:{space}mine-{text}")) for text in "abc"]
    assert [re.findall(rb"X-Request-Id: (\S+)", answer) for answer in answers] == [
        [b"mine-a"],
        [b"mine-b"],
        [b"mine-c"],
    ]


@pytest.mark.parametrize("sent", [body([1, 2, 3]), body("a", odd=1)], ids=["tokens", "whole body"])
async def test_a_body_that_cannot_be_learnt_is_not_read_again_for_each_id(
    client: Client, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    read = 0
    of_reader = Reader.read

    async def counting(self: Reader, *given: Any, **named: Any) -> Any:
        nonlocal read
        read += 1
        return await of_reader(self, *given, **named)

    monkeypatch.setattr(Reader, "read", counting)
    async with wire(client) as line:
        for number in range(8):
            await line.ask(request(sent, f"X-Request-Id: {number}"))
    assert read == 3  # the miss, the first hit, and the first one with a known head


async def test_whole_bodies_are_counted_whether_or_not_they_are_parsed(client: Client) -> None:
    counts = []
    async with wire(client) as line:
        for _ in range(6):
            await line.ask(request(body("c", odd=1)))
            counts.append(await client.metric("embedding_proxy_whole_body_requests_total"))
    assert counts == [1, 2, 3, 4, 5, 6]


async def test_a_client_whose_bodies_never_help_is_learnt_from_less_and_less(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = 0
    of = known_head.KnownBody.of

    def counting(*given: Any) -> Any:
        nonlocal learnt
        learnt += 1
        return of(*given)

    monkeypatch.setattr(known_head.KnownBody, "of", counting)
    await fill(client, "a")
    async with wire(client) as line:
        for number in range(200):
            assert b"X-Cache: HIT" in await line.ask(request(body("a", user=f"user {number}")))
    assert 32 <= learnt <= 40


async def test_head_and_body_may_arrive_separately(client: Client, parsed: Parsed) -> None:
    async with wire(client) as line:
        await known(line, client)
        before = parsed.count
        sent = request(body("c"))
        head = sent[: sent.index(b"\r\n\r\n") + 4]
        assert b"X-Cache: HIT" in await line.ask(head, body("c"))
        assert b"X-Cache: HIT" in await line.ask(sent[:-9], sent[-9:])
        assert parsed.count == before
        line.writer.write(head)
        await asyncio.sleep(0)
        line.writer.write(body("c") + request(body("d")))
        assert b"X-Cache: HIT" in await line.answer()
        assert b"X-Cache: HIT" in await line.answer()


@pytest.mark.parametrize(
    "fields",
    [("Origin: https://a.example",), ("Cache-Control: max-age=9",)],
    ids=["origin", "directive"],
)
async def test_a_head_that_asks_for_a_response_of_its_own_is_parsed(
    client: Client, parsed: Parsed, fields: tuple[str, ...]
) -> None:
    await fill(client, "a", "b", "c")
    before = parsed.count
    async with wire(client) as line:
        for text in "abcabc":
            assert b"X-Cache: " in await line.ask(request(body(text), *fields))
    assert parsed.count == before + 6


async def test_an_id_that_is_part_of_the_key_is_no_id(start_proxy: StartProxy, parsed: Parsed) -> None:
    client = await start_proxy(key_headers=frozenset({"x-request-id"}))
    async with wire(client) as line:
        for number in (1, 1, 1, 1, 2):
            answer = await line.ask(request(body("a"), f"X-Request-Id: {number}"))
    assert b"X-Cache: MISS" in answer


async def test_another_credential_on_the_same_connection_is_another_client(
    client: Client, upstream: ScriptedUpstream
) -> None:
    async with wire(client) as line:
        await known(line, client)
        assert b"X-Cache: MISS" in await line.ask(request(body("c"), key="Bearer sk-other"))
        upstream.reply = error_reply(401, {"error": {"message": "no"}})
        assert b" 401 " in await line.ask(request(body("c"), key="Bearer sk-third"))


async def test_a_refused_credential_is_asked_about(client: Client, upstream: ScriptedUpstream) -> None:
    async with wire(client) as line:
        await known(line, client)
        upstream.reply = error_reply(401, {"error": {"message": "no"}})
        assert (await client.embed("new")).status == 401
        assert b" 401 " in await line.ask(request(body("c")))


async def test_a_revoked_key_is_not_admitted(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory, parsed: Parsed
) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys"
    key = client_keys.add(path, "goes")
    own = UpstreamSetting(name="s", base_url=upstream.base_url, key="sk-held")
    client = await start_proxy(upstream=own, client_keys=path)
    async with wire(client) as line:
        for text in "abcab":
            await line.ask(request(body(text), key=f"Bearer {key}"))
        before = parsed.count
        assert b"X-Cache: HIT" in await line.ask(request(body("c"), key=f"Bearer {key}"))
        assert parsed.count == before
        client_keys.revoke(path, "goes")
        assert client.proxy.client_keys is not None
        client.proxy.client_keys.reload()
        assert b" 401 " in await line.ask(request(body("c"), key=f"Bearer {key}"))


async def test_what_memory_lacks_is_fetched_without_parsing(client: Client, parsed: Parsed) -> None:
    async with wire(client) as line:
        await known(line, client)
        before = parsed.count
        assert b"X-Cache: MISS" in await line.ask(request(body("new")))
        assert b"X-Cache: PARTIAL" in await line.ask(request(body(["newer", "c"])))
        assert b"X-Cache: HIT" in await line.ask(request(body(["newer", "new"])))
        assert parsed.count == before


async def test_a_head_is_learnt_from_misses(client: Client, parsed: Parsed) -> None:
    async with wire(client) as line:
        for text in "abcdefgh":
            assert b"X-Cache: MISS" in await line.ask(request(body(text)))
    assert parsed.count == 2


async def test_entries_past_their_ttl_are_fetched_again(start_proxy: StartProxy) -> None:
    now = [1000.0]
    client = await start_proxy(clock=lambda: now[0], ttl_s=60.0)
    async with wire(client) as line:
        await known(line, client)
        now[0] += 61.0
        assert b"X-Cache: MISS" in await line.ask(request(body("c")))


async def test_in_a_new_epoch_a_known_head_is_learnt_anew(start_proxy: StartProxy, parsed: Parsed) -> None:
    client = await start_proxy(canary_interval_s=3600.0, on_drift="new-epoch")
    async with wire(client) as line:
        await known(line, client)
        assert b"X-Cache: HIT" in await line.ask(request(body("c")))
        canary = client.proxy.canary
        assert canary is not None
        (subject,) = canary.in_use.current()
        await canary.epochs.advance(subject.digest, 0)
        assert b"X-Cache: MISS" in await line.ask(request(body("d")))
        await known(line, client)
        before = parsed.count
        for text in "cd":
            assert b"X-Cache: HIT" in await line.ask(request(body(text)))
        assert parsed.count == before


@pytest.mark.parametrize(("items", "are_parsed"), [(96, False), (130, False), (224, True)])
async def test_large_responses_are_written_in_turns_and_very_large_ones_streamed(
    client: Client, upstream: ScriptedUpstream, parsed: Parsed, items: int, *, are_parsed: bool
) -> None:
    upstream.dimensions = 4096
    async with wire(client) as line, wire(client) as other:
        await known(line, client)
        sent = request(body(["c", "d"] * (items // 2)))
        before = parsed.count
        answers = [await line.ask(sent) for _ in range(2)]
        assert parsed.count == before + 2 * are_parsed
        assert b"X-Cache: HIT" in answers[0]
        assert {told(answer) for answer in answers} == {told(await after_an_empty_line(other, sent))}
        before = parsed.count
        assert b"X-Cache: HIT" in await line.ask(request(body(["c", "d"])))
        assert parsed.count == before


@pytest.mark.parametrize("room", [10**6, 0])
async def test_long_requests_are_not_parsed_if_there_is_memory_for_them(
    client: Client, parsed: Parsed, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    texts = [letter * 20_000 for letter in "cdef"]
    async with wire(client) as line, wire(client) as other:
        await known(line, client)
        await fill(client, *texts)
        sent = request(body(texts))
        monkeypatch.setattr(Connection, "reservation", lambda _: Reserved(room))
        before = parsed.count
        answer = await line.ask(sent[:50_000], sent[50_000:])
        assert b"X-Cache: HIT" in answer
        assert parsed.count == before + (not room)
        assert told(answer) == told(await after_an_empty_line(other, sent))
        if not room:
            return
        before = parsed.count
        new = await line.ask(request(body([*texts[:3], "g" * 20_000])))
        assert b"X-Cache: PARTIAL" in new
        assert parsed.count == before


@pytest.mark.parametrize("is_overloaded", [False, True])
async def test_large_responses_of_numbers_are_made_in_turns_if_there_is_memory_for_them(
    client: Client, upstream: ScriptedUpstream, parsed: Parsed, monkeypatch: pytest.MonkeyPatch, *, is_overloaded: bool
) -> None:
    upstream.dimensions = 4096
    async with wire(client) as line:
        await fill(client, "a", "b", "c", "d", encoding_format="float")
        await teach(line, encoding_format="float")
        given = ["c", "d", "c"] * 10
        expected = (await client.post(body(given, encoding_format="float"))).embeddings
        before, reserved = parsed.count, Reserved(0 if is_overloaded else 4 * 1024**2)
        with monkeypatch.context() as patched:
            patched.setattr(Connection, "reservation", lambda _: reserved)
            line.writer.write(request(body(given, encoding_format="float")))
            head = await line.reader.readuntil(b"\r\n\r\n")
        assert b"X-Cache: HIT" in head
        assert parsed.count == before + is_overloaded
        if not is_overloaded:
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            content = await line.reader.readexactly(int(length[1]))
            assert len(content) > LARGE_BYTES
            assert [datum["embedding"] for datum in orjson.loads(content)["data"]] == expected
            assert len(reserved.taken) >= 1
        assert reserved.room == (0 if is_overloaded else 4 * 1024**2)


async def test_several_bodies_are_known_and_no_more_than_a_few(client: Client, parsed: Parsed) -> None:
    users = [f"u{number}" for number in range(known_head._MAX_BODIES + 1)]
    await fill(client, "a", "b", "c")
    async with wire(client) as line:
        await teach(line)
        for user in users:
            await line.ask(request(body("a", user=user)))
        before = parsed.count
        for user in users[1:]:
            await line.ask(request(body("c", user=user)))
        assert parsed.count == before
        await line.ask(request(body("c", user=users[0])))
        await line.ask(request(body("b")))
        assert parsed.count == before + 2


async def test_a_long_head_is_not_kept(client: Client, parsed: Parsed) -> None:
    async with wire(client) as line:
        await known(line, client, "X-Long: " + "x" * 17_000)
        before = parsed.count
        for text in "cd":
            assert b"X-Cache: HIT" in await line.ask(request(body(text), "X-Long: " + "x" * 17_000))
        assert parsed.count == before + 2


async def test_a_draining_proxy_closes_after_the_response(client: Client) -> None:
    async with wire(client) as line:
        await known(line, client)
        client.proxy.lifecycle.is_draining = True
        line.writer.write(request(body("c")))
        answer = await line.reader.read()
    assert b"\r\nConnection: close\r\n" in answer
    assert b"X-Cache: HIT" in answer


async def test_hits_end_a_count_of_varying_headers(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """As parsed ones do."""
    async with wire(client) as line:
        for text in "abcab":
            await line.ask(request(body(text), "X-Job-Tags: same"))
        for number in range(45):
            await client.embed("x", headers={"X-Job-Tags": f"{number}"})
            if number % 10 == 0:
                assert b"X-Cache: HIT" in await line.ask(request(body("c"), "X-Job-Tags: same"))
    assert "values of x-job-tags" not in caplog.text


# --- the connection by itself, with somebody who responds to every request whose head fits


class Learns(Knows):
    """Responds after some turns of the event loop: the next of ``delays``; None: at once."""

    def __init__(self, delays: Iterable[int | None] = ()) -> None:
        super().__init__()
        self._delays = iter(delays)
        self.is_parser_needed = False  # found out later

    def handle_bytes(self, sent: bytes, connection: Connection) -> Response | LongResponse | ResponseLater | None:
        head = None if connection.known_head is None else connection.known_head.match(sent)
        if head is None or head.size_bytes + head.body_bytes != len(sent):
            return None
        self.count += 1
        response = [echo(sent.split(b" ")[1].decode(), sent[head.size_bytes :])]
        turns = next(self._delays, None)
        return response if turns is None else self._later(turns, response)

    async def _later(self, turns: int, response: Response) -> Response | None:
        for _ in range(turns):
            await asyncio.sleep(0)
        return None if self.is_parser_needed else response

    def knows_head(self, sent: bytes) -> bool:
        return False


class LearningSite(EchoSite):
    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        response = await super()._handle(request)
        head = self.connection.head(request)
        self.connection.known_head = None if head is None else HeadTemplate.of(head)
        await asyncio.sleep(0)  # from Python 3.12 on, a handler that never waits ends before aiohttp waits for it
        return response


def numbered(length: int, request_id: str) -> bytes:
    sent = b"x" * length
    return b"POST /n HTTP/1.1\r\nHost: h\r\nX-Request-Id: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        request_id.encode(), length, sent,
    )  # fmt: skip


REQUESTS = st.one_of(
    st.builds(numbered, st.integers(0, 30), st.sampled_from(["i", "another"])),
    st.builds(numbered, st.integers(0, 30), st.sampled_from(["i", "another"])),
    st.sampled_from(OTHERS),
)


@given(
    st.lists(REQUESTS, min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 600), st.booleans()), max_size=8),
    st.lists(st.none() | st.integers(0, 40), max_size=4),
    st.booleans(),
    st.integers(1, 4),
)
def test_wherever_a_stream_is_cut_the_responses_are_those_of_the_parser_alone(
    requests: list[bytes], cuts: list[tuple[int, bool]], delays: list[int | None], is_parser_needed: bool, pieces: int
) -> None:
    stream = b"".join(requests)
    boundaries = {sum(map(len, requests[:count])) for count in range(len(requests))}
    places = dict.fromkeys(boundaries, True) | {min(at, len(stream)): is_pause for at, is_pause in cuts}

    async def run(knows: Learns | None) -> list[bytes]:
        site = LearningSite(knows)
        async with site.line() as line:
            for start, end in pairwise(sorted({0, len(stream), *places})):
                site.connection.data_received(stream[start:end])
                if places.get(end, True):
                    await settled()
            site.server.sweep()
            responses = b""
            while len(said(responses)) < len(requests):
                responses += await Wire(line.reader, line.writer).answer()
            return said(responses)

    learns = RespondsAtLength(pieces, delays) if pieces > 1 else Learns(delays)
    learns.is_parser_needed = is_parser_needed
    assert asyncio.run(run(learns)) == asyncio.run(run(None))


async def test_a_head_that_differs_in_its_length_is_known() -> None:
    knows = Learns()
    site = LearningSite(knows)
    async with site.line() as line:
        for length in (3, 0, 12):
            line.writer.write(numbered(length, f"id-{length}"))
            assert (await line.answer()).endswith(b"/n " + b"x" * length)
    assert (site.seen, knows.count) == (["/n"], 2)


@asynccontextmanager
async def just_responded() -> AsyncIterator[tuple[LearningSite, Wire]]:
    """A connection that has written the response to its first request, whose task has not resumed."""
    site = LearningSite(Learns())
    async with site.line() as line:
        line.writer.write(numbered(3, "first"))
        while not site.seen:
            await asyncio.sleep(0)
        while site.connection.is_busy:
            await asyncio.sleep(0)
        assert not site.connection.is_idle
        yield site, line


async def test_a_client_that_is_quicker_than_the_server_is_not_parsed_for_that() -> None:
    async with just_responded() as (site, line):
        second = numbered(4, "second")
        for part in (second[:10], second[10:]):
            site.connection.data_received(part)
        assert (await line.answer()).endswith(b"/n xxx")
        assert (await line.answer()).endswith(b"/n xxxx")
        assert site.seen == ["/n"]


async def test_what_comes_early_is_responded_to_when_the_client_closes_its_side() -> None:
    async with just_responded() as (site, line):
        site.connection.data_received(numbered(4, "second"))
        assert site.connection.eof_received()
        assert (await line.reader.read()).endswith(b"/n xxxx")


async def test_what_comes_early_is_responded_to_before_the_server_stops() -> None:
    async with just_responded() as (site, line):
        site.connection.data_received(numbered(4, "second"))
        site.server.pre_shutdown()
        assert (await line.reader.read()).endswith(b"/n xxxx")


FOREVER = 10**9  # turns of the event loop


@asynccontextmanager
async def pending(turns: int = FOREVER) -> AsyncIterator[tuple[LearningSite, Wire]]:
    """A connection whose second request waits for a response of the bytes handler."""
    site = LearningSite(Learns([turns]))
    async with site.line() as line:
        line.writer.write(numbered(3, "first"))
        await line.answer()
        site.connection.data_received(numbered(4, "second"))
        await settled()
        assert site.seen == ["/n"]
        yield site, line


async def test_a_response_comes_later() -> None:
    async with pending(turns=100) as (site, line):
        assert (await line.answer()).endswith(b"/n xxxx")
        assert site.seen == ["/n"]


async def test_a_pending_request_is_parsed_when_another_one_follows() -> None:
    async with pending() as (site, line):
        line.writer.write(numbered(5, "third"))
        assert (await line.answer()).endswith(b"/n xxxx")
        assert (await line.answer()).endswith(b"/n xxxxx")
        assert site.seen == ["/n"] * 3


async def test_a_pending_request_is_responded_to_when_the_client_closes_its_side() -> None:
    async with pending() as (site, line):
        line.writer.write_eof()
        rest = await line.reader.read()
        assert rest.endswith(b"/n xxxx")
        assert site.seen == ["/n"] * 2


async def test_a_pending_request_is_responded_to_before_the_server_stops() -> None:
    async with pending() as (site, line):
        site.server.pre_shutdown()
        rest = await line.reader.read()
        assert rest.endswith(b"/n xxxx")
        assert b"Connection: close" in rest


async def test_a_response_that_is_there_is_sent_whatever_comes_at_that_moment() -> None:
    """Its request is counted, and must not be parsed and counted again."""
    async with pending(turns=100) as (site, line):
        request = site.connection._pending
        assert request is not None
        task = request.response
        assert task is not None
        while not task.done():
            await asyncio.sleep(0)
        site.server.sweep()
        assert (await line.answer()).endswith(b"/n xxxx")
        assert site.seen == ["/n"]


async def test_nothing_is_done_on_a_lost_connection() -> None:
    async with pending() as (site, _):
        assert site.connection.transport is not None
        site.connection.transport.abort()
        while site.server.connections:
            await asyncio.sleep(0)
        assert not [task for task in asyncio.all_tasks() if "Learns._later" in repr(task)]
        assert site.seen == ["/n"]


# --- requests in many pieces, and responses in turns


async def test_a_request_may_arrive_in_many_pieces() -> None:
    site = LearningSite(Learns())
    async with site.line() as line:
        line.writer.write(numbered(3, "first"))
        await line.answer()
        sent = numbered(40, "second")
        for byte in range(len(sent)):
            await site.give(sent[byte : byte + 1])
        # Until the head is complete, it may be any other one.
        assert (await line.answer()).endswith(b"x" * 40)
        head = sent.index(b"\r\n\r\n") + 4
        for start in (0, head + 10, head + 20, head + 30):
            await site.give(sent[start : head + 10 if start == 0 else start + 10])
        assert (await line.answer()).endswith(b"x" * 40)
    assert site.seen == ["/n"] * 2


class Reserved:
    """Memory of which there is room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken: list[int] = []

    def take(self, size: int) -> None:
        if size > self.room:
            raise Overloaded("no room")
        self.room -= size
        self.taken.append(size)

    def give_back(self, size: int) -> None:
        self.room += size


@pytest.mark.parametrize("room", [10**6, 10**4])
async def test_memory_for_a_long_request_is_reserved_until_it_is_there(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    reserved = Reserved(room)
    monkeypatch.setattr(Connection, "reservation", lambda _: reserved)
    site = LearningSite(Learns())
    async with site.line() as line:
        line.writer.write(numbered(3, "first"))
        await line.answer()
        sent = numbered(100_000, "second")
        await site.give(sent[:50_000])
        assert (reserved.taken, reserved.room) == (([len(sent)], room - len(sent)) if room > 10**5 else ([], room))
        await site.give(sent[50_000:])
        assert (await line.answer()).endswith(b"x" * 100_000)
        assert reserved.room == room
    assert site.seen == ["/n"] * (1 if room > 10**5 else 2)


class RespondsAtLength(Learns):
    """Responds to the second request and to those after it in ``pieces``, of which each waits for a turn."""

    def __init__(self, pieces: int, delays: Iterable[int | None] = ()) -> None:
        super().__init__(delays)
        self._pieces = pieces
        self.made = self.left = 0

    def handle_bytes(self, sent: bytes, connection: Connection) -> Response | LongResponse | ResponseLater | None:
        response = super().handle_bytes(sent, connection)
        if not isinstance(response, list):
            return response
        first, body = response[0][:20], response[0][20:]
        size = -(-len(body) // self._pieces)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        self.left = len(pieces)
        return LongResponse([first], self._rest(pieces))

    def _rest(self, pieces: list[bytes]) -> Iterator[Response]:
        for piece in pieces:
            self.made, self.left = self.made + 1, self.left - 1
            yield [piece]


@asynccontextmanager
async def responding(pieces: int = 20) -> AsyncIterator[tuple[LearningSite, Wire, RespondsAtLength]]:
    """A connection that has begun to write a response in turns."""
    knows = RespondsAtLength(pieces)
    site = LearningSite(knows)
    async with site.line() as line:
        line.writer.write(numbered(3, "first"))
        await line.answer()
        await settled()
        site.connection.data_received(numbered(40, "second"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert site.connection.is_busy
        assert knows.left > 5
        yield site, line, knows


async def test_a_long_response_is_written_in_turns() -> None:
    async with responding() as (site, line, knows):
        assert (await line.answer()).endswith(b"/n " + b"x" * 40)
        await settled()
        assert not site.connection.is_busy
        assert knows.left == 0
        line.writer.write(numbered(50, "third"))
        assert (await line.answer()).endswith(b"/n " + b"x" * 50)
    assert site.seen == ["/n"]


async def test_a_sweep_leaves_a_long_response_alone() -> None:
    async with responding() as (site, line, knows):
        made = knows.made
        site.time += 10**6
        site.server.sweep()
        assert knows.made == made
        assert (await line.answer()).endswith(b"x" * 40)


async def test_another_request_follows_the_whole_long_response() -> None:
    async with responding() as (site, line, _):
        site.connection.data_received(post(7))
        answers = said(await line.answer() + await line.answer())
        assert answers == [b"/n " + b"x" * 40, b"/7 77777777"]


class RespondsAtLengthLater(Learns):
    """Responds to the second request after some turns of the event loop, in many pieces. Just as the response is there,
    and before any of it is written, ``then`` happens."""

    then: Callable[[], object]

    async def _later(self, turns: int, response: Response) -> Response | LongResponse | None:  # type: ignore[override]
        await super()._later(turns, response)
        asyncio.get_running_loop().call_soon(self.then)
        first, body = response[0][:20], response[0][20:]
        return LongResponse([first], ([body[at : at + 1]] for at in range(len(body))))


@asynccontextmanager
async def just_there() -> AsyncIterator[tuple[LearningSite, Wire, RespondsAtLengthLater]]:
    knows = RespondsAtLengthLater([100])
    site = LearningSite(knows)
    async with site.line() as line:
        line.writer.write(numbered(3, "first"))
        await line.answer()
        site.connection.data_received(numbered(40, "second"))
        yield site, line, knows


async def test_another_request_follows_a_whole_long_response_that_was_just_there() -> None:
    async with just_there() as (site, line, knows):
        knows.then = partial(site.connection.data_received, post(7))
        answers = said(await line.answer() + await line.answer())
        assert answers == [b"/n " + b"x" * 40, b"/7 77777777"]


async def test_a_long_response_that_was_just_there_ends_before_the_server_stops() -> None:
    async with just_there() as (site, line, knows):
        knows.then = site.server.pre_shutdown
        assert (await line.reader.read()).endswith(b"x" * 40)


async def test_a_long_response_that_was_just_there_ends_when_the_client_closes_its_side() -> None:
    async with just_there() as (site, line, knows):
        knows.then = site.connection.eof_received
        assert (await line.answer()).endswith(b"x" * 40)
        assert not site.connection.is_busy


async def test_a_long_response_ends_before_the_server_stops() -> None:
    async with responding() as (site, line, _):
        site.server.pre_shutdown()
        assert (await line.reader.read()).endswith(b"x" * 40)


async def test_a_long_response_ends_when_the_client_closes_its_side() -> None:
    async with responding() as (_, line, _):
        line.writer.write_eof()
        assert (await line.reader.read()).endswith(b"x" * 40)


async def test_no_more_of_a_long_response_is_made_on_a_lost_connection() -> None:
    async with responding() as (site, _, knows):
        assert site.connection.transport is not None
        site.connection.transport.abort()
        while site.server.connections:
            await asyncio.sleep(0)
        made = knows.made
        await settled()
        assert knows.made == made
        assert knows.left


async def test_what_the_client_has_not_read_of_a_long_response_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved = Reserved(10**6)
    monkeypatch.setattr(Connection, "reservation", lambda _: reserved)
    async with responding() as (site, line, _):
        connection = site.connection
        connection.pause_writing()
        assert (await line.answer()).endswith(b"x" * 40)
        await settled()
        assert len(reserved.taken) == 2  # when the client stopped to read, and when all was written
        connection.resume_writing()
        assert reserved.room == 10**6


# --- items that only the store has


@pytest.fixture
async def stored(start_proxy: StartProxy, sqlite_path: Path) -> Client:
    return await start_proxy(store=StoreSetting(path=sqlite_path))


async def forget(client: Client) -> None:
    """Empty the memory tier."""
    await client.proxy.cache.memory.clear()


async def test_items_are_read_from_the_store_without_parsing(
    stored: Client, upstream: ScriptedUpstream, parsed: Parsed
) -> None:
    async with wire(stored) as line, wire(stored) as cut:
        await known(line, stored)
        asked = len(upstream.calls)
        for given in ("c", ["c", "d", "c"]):
            before, responses, counted = parsed.count, [], []
            for ask in (line.ask, lambda sent: after_an_empty_line(cut, sent)):
                await forget(stored)
                earlier = await counters(stored)
                responses.append(await ask(request(body(given))))
                later = await counters(stored)
                counted.append({name: later[name] - earlier[name] for name in later if later[name] != earlier[name]})
            assert b"X-Cache: HIT" in responses[0]
            assert without_id(responses[0]) == without_id(responses[1])
            assert counted[0] == counted[1]
            assert parsed.count == before + 1
        assert len(upstream.calls) == asked


async def test_a_head_is_learnt_from_items_in_the_store(stored: Client, parsed: Parsed) -> None:
    await fill(stored, "a", "b", "c")
    async with wire(stored) as line:
        for text, is_parsed in (("a", True), ("b", True), ("c", False)):
            await forget(stored)
            before = parsed.count
            assert b"X-Cache: HIT" in await line.ask(request(body(text)))
            assert parsed.count == before + is_parsed


async def test_what_the_store_lacks_is_fetched(stored: Client, parsed: Parsed) -> None:
    async with wire(stored) as line:
        await known(line, stored)
        await forget(stored)
        before = parsed.count
        assert b"X-Cache: MISS" in await line.ask(request(body("new")))
        assert b"X-Cache: PARTIAL" in await line.ask(request(body(["newer", "c"])))
        assert parsed.count == before


async def test_a_credential_refused_during_the_read_gets_nothing(
    stored: Client, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with wire(stored) as line:
        await known(line, stored)
        await forget(stored)
        upstream.reply = error_reply(401, {"error": {"message": "no"}})
        read = Cache.read

        async def refused_meanwhile(self: Cache, *given: Any, **named: Any) -> Any:
            monkeypatch.setattr(Cache, "read", read)
            assert (await stored.embed("other")).status == 401
            return await read(self, *given, **named)

        monkeypatch.setattr(Cache, "read", refused_meanwhile)
        assert b" 401 " in await line.ask(request(body("c")))
