"""Memory bounds count real cost: parsed objects as well as JSON, responses as well as requests, tenants by key."""

import asyncio
import gzip
import itertools
import json
import socket
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.access import client_keys
from proxy.access.validations import Credential, CredentialScope, Validations
from proxy.config.settings import KIB, MIB, UpstreamSetting
from proxy.fetch.outcomes import in_own_words
from proxy.protocol import json_structure
from proxy.protocol.identities import identity
from proxy.protocol.providers import GENERIC, PROVIDERS
from proxy.upstream.client import UpstreamResponse as UpstreamAnswer
from proxy.upstream.router import Origin
from proxy.upstream.urls import Routes
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.gate import Gate
from tests.support.scripted import Call, ScriptedUpstream, error_reply

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer sk-test\r\n"


async def held(client: Client) -> float:
    return await client.metric("embedding_proxy_held_request_bytes")


async def until_held(client: Client, at_least: float = 0, at_most: float = float("inf")) -> float:
    while not at_least <= (now := await held(client)) <= at_most:
        await asyncio.sleep(0)
    return now


@asynccontextmanager
async def connected(client: Client, *, receive_bytes: int | None = None) -> AsyncIterator[tuple[Any, Any]]:
    """A connection, which takes hardly more than ``receive_bytes`` that nobody reads."""
    host, port = client.origin.removeprefix("http://").split(":")
    plain = socket.socket()
    if receive_bytes is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=plain, limit=1024)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def request_of(body: bytes, *fields: bytes) -> bytes:
    return b"".join([HEAD, *(field + b"\r\n" for field in fields), b"Content-Length: %d\r\n\r\n" % len(body), body])


# --- requests


@pytest.mark.parametrize("element", [b"[],", b"{},", b"0,", b'"",', b'{"a":0},'])
async def test_too_complex_body_is_refused_before_it_is_complete(
    client: Client, upstream: ScriptedUpstream, element: bytes
) -> None:
    many = json_structure.MAX_VALUES if b":" not in element else json_structure.MAX_MEMBERS
    async with connected(client) as (reader, writer):
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % (60 * MIB))
        writer.write(b'{"model":"m","input":"x","user":[' + element * (many + 10))
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b"HTTP/1.1 413" in answer
        assert b'"code":"body_too_complex"' in await reader.readuntil(b"}}")
    await until_held(client, at_most=0)
    assert not upstream.calls


async def test_json_syntax_inside_texts_is_not_too_complex(client: Client) -> None:
    texts = [json.dumps([{"a": [1, 2, 3]}] * 20_000) + str(n) for n in range(8)]
    assert (await client.embed(texts)).cache == "MISS"
    assert (await client.embed(texts)).cache == "HIT"


async def test_token_arrays_and_large_texts_are_cached(client: Client) -> None:
    tokens = [[n % 100_000 for n in range(1000 * i, 1000 * i + 1000)] for i in range(200)]
    for given in (tokens, [f"{n}" + "x" * 32_000 for n in range(50)]):
        assert (await client.embed(given)).cache == "MISS"
        again = await client.embed(given, user="another body")
        assert (again.cache, len(again.embeddings)) == ("HIT", len(given))


async def test_large_invalid_request_gets_the_same_error(client: Client, upstream: ScriptedUpstream) -> None:
    large = "x" * MIB
    assert (await client.embed([large, ""])).headers["Cache-Status"].endswith("detail=whole-body")
    twice = b'{"model":"m","input":"%b","user":{"a":1,"a":2}}' % large.encode()
    assert (await client.post(twice)).headers["Cache-Status"].endswith("detail=duplicate-key")
    assert (await client.post(twice[:-1])).headers["Cache-Status"].endswith("detail=not-json")


async def test_too_many_items_are_relayed(client: Client, upstream: ScriptedUpstream) -> None:
    for given in (["a"] * 16_385, [f"{n:0100}" for n in range(16_385)], [[1]] * 16_385):
        answer = await client.embed(given)
        assert (answer.cache, len(answer.embeddings)) == ("BYPASS", 16_385)
        assert "detail=too-many-items" in answer.headers["Cache-Status"]
    assert (await client.embed(["a"] * 16_384)).cache == "MISS"


async def test_relayed_body_goes_to_the_upstream_of_its_model(start_proxy: StartProxy) -> None:
    """Also one that is too large to be read as a whole."""
    async with ScriptedUpstream().serving() as other, ScriptedUpstream().serving() as default:
        routed = UpstreamSetting(
            name="other", base_url=other.base_url, provider=PROVIDERS["generic"], models=("theirs",)
        )
        own = UpstreamSetting(name="own", base_url=default.base_url, provider=PROVIDERS["generic"])
        client = await start_proxy(upstream=own, routed=(routed,))
        relayed = orjson.dumps({"input": "x" * 2 * MIB, "model": "theirs", "stream": True})
        many = orjson.dumps({"input": ["a"] * 20_000, "model": "theirs"})
        for body in (relayed, relayed.replace(b"x", b"\xff", 1), many):
            await client.post(body)
        assert [len(one.calls) for one in (other, default)] == [3, 0]


async def test_json_is_parsed_only_by_native_code(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", None)
    members = b",".join(b'{"a%d":0}' % n for n in range(50_000))
    body = b'{"model":"m","input":"x","user":[%b,{"\\u003a":0}]}' % members
    assert (await client.post(body)).cache == "MISS"
    assert (await client.post(body.replace(b'{"a7":0}', b'{"a7":0,"a7":0}'))).cache == "BYPASS"


async def test_unauthorized_client_gets_401_before_its_body_is_read(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    client, _ = await with_client_keys(start_proxy, upstream, tmp_path)
    async with connected(client) as (reader, writer):
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % (60 * MIB))
        assert b"HTTP/1.1 401" in await reader.readuntil(b"\r\n\r\n")
    assert not upstream.calls


async def test_parsed_request_counts_as_held_memory(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    tokens = [list(range(1000 * n, 1000 * n + 1000)) for n in range(100)]
    body = orjson.dumps({"model": "m", "input": tokens})
    asked = asyncio.create_task(client.post(body))
    await gate.calls(1)
    assert 36 * 100_000 < await held(client) - len(body) < 48 * 100_000
    gate.open()
    assert (await asked).status == 200
    assert await held(client) == 0


async def test_fetch_of_a_disconnected_client_counts_as_held_memory(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    asked = asyncio.create_task(client.embed("x" * 100_000))
    await gate.calls(1)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    while await client.metric("embedding_proxy_requests_in_flight"):
        await asyncio.sleep(0)
    assert await held(client) > 200_000
    gate.open()
    await client.proxy.fetcher.drain()
    assert await held(client) == 0


async def test_non_latin_text_counts_four_bytes_per_character(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    asked = asyncio.create_task(client.embed("x" * 100_000 + "\U0001f600"))
    await gate.calls(1)
    assert await held(client) > 500_000
    gate.open()
    await asked


async def test_inflated_body_is_refused_by_its_parsing_cost(client: Client, upstream: ScriptedUpstream) -> None:
    body = b'{"model":"m","input":"x","user":[' + b"[]," * (20 * MIB) + b"0]}"
    bomb = gzip.compress(body)
    tracemalloc.start()
    try:
        answers = await asyncio.gather(*(client.post(bomb, Content_Encoding="gzip") for _ in range(3)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {(answer.status, answer.json["error"]["code"]) for answer in answers} == {(413, "body_too_complex")}
    assert peak < 40 * MIB
    assert await held(client) == 0
    assert not upstream.calls


# --- strangers


async def test_unknown_credentials_leave_memory_for_validated_ones(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(max_held_bytes=MIB)
    assert (await client.post({"model": "m", "input": "hello"}, key="Bearer known")).status == 200
    async with connected(client) as (_, first), connected(client) as (_, second):
        # Bodies that never end, of credentials that are made up.
        for number, writer in enumerate((first, second)):
            head = HEAD.replace(b"sk-test", b"made-up-%d" % number)
            writer.write(head + b"Content-Length: 1000000\r\n\r\n" + b" " * 250_000)
        await until_held(client, at_least=500_000)
        large = {"model": "m", "input": "x" * 100_000}
        refused = await client.post(large, key="Bearer made-up-3")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert (await client.post(large, key="Bearer known")).status == 200


async def test_first_request_of_a_new_client_may_be_large(start_proxy: StartProxy) -> None:
    client = await start_proxy(max_held_bytes=MIB)
    assert (await client.embed(["x" * 40_000 + str(n) for n in range(10)])).status == 200


# --- one client and the others


async def with_client_keys(
    start_proxy: StartProxy, upstream: ScriptedUpstream, folder: Path, **changes: Any
) -> tuple[Client, list[str]]:
    keys = [client_keys.add(folder / "clients", name) for name in ("greedy", "other")]
    own = UpstreamSetting(name="scripted", base_url=upstream.base_url, provider=PROVIDERS["generic"], key="sk-owned")
    return await start_proxy(upstream=own, client_keys=folder / "clients", **changes), keys


async def test_routing_fields_do_not_create_tenants(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(upstream_concurrency=16)
    gate = Gate(upstream)
    greedy = [asyncio.create_task(client.embed(f"{n}", headers={"X-Region": f"r{n}"})) for n in range(16)]
    await gate.calls(8)
    other = asyncio.create_task(client.post({"model": "m", "input": "x"}, key="Bearer other"))
    await gate.calls(9)
    assert upstream.calls[8].headers["Authorization"] == "Bearer other"
    gate.open()
    assert {answer.status for answer in await asyncio.gather(other, *greedy)} == {200}


async def test_a_client_whose_calls_hang_leaves_calls_to_the_others_that_have_the_same_key_upstream(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    client, keys = await with_client_keys(start_proxy, upstream, tmp_path, upstream_concurrency=8)
    gate = Gate(upstream)
    greedy = []
    for calls in range(1, 5):
        greedy.append(asyncio.create_task(client.post({"model": "m", "input": f"{calls}"}, key=f"Bearer {keys[0]}")))
        await gate.calls(calls)
    greedy.append(asyncio.create_task(client.post({"model": "m", "input": "more"}, key=f"Bearer {keys[0]}")))
    other = asyncio.create_task(client.post({"model": "m", "input": "x"}, key=f"Bearer {keys[1]}"))
    await gate.calls(5)
    assert "x" in upstream.calls[4].items
    gate.open()
    assert {answer.status for answer in await asyncio.gather(other, *greedy)} == {200}


MADE_UP = [{"X-Region": "r{}"}, {"X-Made-Up-Token": "t{}"}]


@pytest.mark.parametrize("fields", MADE_UP)
@pytest.mark.parametrize("has_client_keys", [False, True])
async def test_one_client_cannot_fill_the_queue(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, fields: dict[str, str], has_client_keys: bool
) -> None:
    if has_client_keys:
        client, keys = await with_client_keys(start_proxy, upstream, tmp_path, max_queued_items=400)
    else:
        client, keys = await start_proxy(max_queued_items=400), ["greedy", "other"]

    async def ask(key: str, number: int) -> int:
        texts = [f"{key} {number} {n}" for n in range(20)]
        further = {name: value.format(number) for name, value in fields.items()}
        return (await client.post({"model": "m", "input": texts}, key=f"Bearer {key}", **further)).status

    assert [await ask(key, -1) for key in keys] == [200, 200]
    gate = Gate(upstream)
    greedy = [asyncio.create_task(ask(keys[0], number)) for number in range(49)]
    refused = itertools.islice(asyncio.as_completed(greedy), 39)
    assert {await one for one in refused} == {503}
    others = [asyncio.create_task(ask(keys[1], number)) for number in range(3)]
    while await client.metric("embedding_proxy_upstream_queued_items") < 260:
        await asyncio.sleep(0)
    gate.open()
    assert await asyncio.gather(*others) == [200] * 3
    assert Counter(await asyncio.gather(*greedy)) == {200: 10, 503: 39}


@pytest.mark.parametrize("fields", MADE_UP)
async def test_one_client_cannot_hold_all_memory(
    start_proxy: StartProxy, upstream: ScriptedUpstream, fields: dict[str, str]
) -> None:
    client = await start_proxy(max_held_bytes=2 * MIB)
    for key in ("Bearer greedy", "Bearer other"):
        assert (await client.post({"model": "m", "input": "known"}, key=key)).status == 200
    gate = Gate(upstream)

    async def ask(key: str, number: int) -> int:
        further = {name: value.format(number) for name, value in fields.items()}
        body = {"model": "m", "input": f"{number}" + "x" * 100_000}
        return (await client.post(body, key=key, **further)).status

    greedy = [asyncio.create_task(ask("Bearer greedy", number)) for number in range(20)]
    refused = itertools.islice(asyncio.as_completed(greedy), 15)
    assert {await one for one in refused} == {503}
    assert 800_000 < await held(client) <= MIB
    other = asyncio.create_task(ask("Bearer other", 0))
    await until_held(client, at_least=MIB + 1)
    gate.open()
    assert await other == 200
    assert Counter(await asyncio.gather(*greedy)) == {200: 5, 503: 15}
    assert await held(client) == 0


async def test_arbitrary_fields_with_a_valid_key_leave_little_memory() -> None:
    """And what is known of others stays."""
    validations = Validations(ttl_s=600, clock=lambda: 0.0)
    client: Any = None
    origin = Origin(name="o", provider=GENERIC, routes=Routes("http://h/v1"), client=client)

    def confirm(number: int, key: str) -> Credential:
        own = identity(CIMultiDict({"Authorization": key, "X-Made-Up-Token": f"{number}"}))
        tenant = validations.tenant([("authorization", key)])
        credential = Credential(
            validations.credential_id(tenant, origin, own),
            CredentialScope("http://h/v1/embeddings?" + "x" * 3000, f"{number}"),
        )
        validations.confirm(credential, asked_at_s=0.0)
        return credential

    good = confirm(0, "Bearer good")
    tracemalloc.start()
    try:
        last = [confirm(number, "Bearer bad") for number in range(10_000)][-1]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 3 * MIB
    assert validations.is_confirmed(good)
    assert validations.is_confirmed(last)


# --- responses


DIMENSIONS = 1024


async def fill(client: Client, upstream: ScriptedUpstream, given: Any) -> None:
    upstream.dimensions = DIMENSIONS
    assert (await client.embed(given)).status == 200


@pytest.mark.parametrize("encoding", ["base64", "float"])
async def test_large_response_is_equivalent_to_small_ones(
    client: Client, upstream: ScriptedUpstream, encoding: str
) -> None:
    texts = [f"{n}" for n in range(300)]
    await fill(client, upstream, texts)
    large = await client.embed(texts, encoding_format=encoding)
    assert len(large.body) > MIB
    assert int(large.headers["Content-Length"]) == len(large.body)  # the texts of the numbers are in memory
    assert large.headers["Content-Type"] == "application/json"
    assert large.headers["X-Request-Id"]
    small = [await client.embed(texts[n : n + 10], encoding_format=encoding) for n in range(0, 300, 10)]
    assert large.cache == "HIT"
    assert large.embeddings == [embedding for answer in small for embedding in answer.embeddings]
    assert large.json | {"data": None} == small[0].json | {"data": None}
    assert [datum["index"] for datum in large.json["data"]] == list(range(300))
    assert large.headers["X-Cache-Saved-Tokens"] == str(sum(map(len, texts)))


@pytest.mark.parametrize("encoding", ["base64", "float"])
async def test_large_miss_is_equivalent_to_small_hits(
    client: Client, upstream: ScriptedUpstream, encoding: str
) -> None:
    upstream.dimensions = DIMENSIONS
    texts = [f"{n}" for n in range(300)]
    first = await client.embed(texts, encoding_format=encoding)
    again = await client.embed(texts, encoding_format=encoding, user="another body")
    assert (first.cache, again.cache) == ("MISS", "HIT")
    assert first.embeddings == again.embeddings
    assert first.json["usage"]["prompt_tokens"] == sum(map(len, texts))
    assert await client.metric("embedding_proxy_requests_total", outcome="miss", status="200") == 1


@pytest.mark.parametrize("encoding", ["base64", "float"])
async def test_unread_responses_take_no_memory(client: Client, upstream: ScriptedUpstream, encoding: str) -> None:
    await fill(client, upstream, "x")
    body = orjson.dumps({"model": "m", "input": ["x"] * 2048, "encoding_format": encoding})
    await client.embed("x", encoding_format=encoding)
    tracemalloc.start()
    try:
        async with connected(client, receive_bytes=4096) as first:
            connections = [first]
            first[1].write(request_of(body))
            async with connected(client, receive_bytes=4096) as second:
                connections.append(second)
                second[1].write(request_of(body))
                head = await second[0].readuntil(b"\r\n\r\n")
                _, peak = tracemalloc.get_traced_memory()
                assert b"X-Cache: HIT" in head
                assert peak < 4 * MIB
                assert await held(client) < 2 * MIB
    finally:
        tracemalloc.stop()
    await until_held(client, at_most=0)


async def test_entries_count_as_held_while_they_are_written(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(max_held_bytes=4 * MIB)
    texts = [f"{n}" for n in range(400)]
    await fill(client, upstream, texts)
    body = orjson.dumps({"model": "m", "input": texts, "encoding_format": "base64"})
    async with connected(client, receive_bytes=4096) as (reader, writer):
        writer.write(request_of(body))
        await reader.readuntil(b"\r\n\r\n")
        assert await held(client) > 400 * 4 * DIMENSIONS
        # Another of the same client would have more than its share; one of another client has room.
        again = orjson.dumps({"model": "m", "input": texts, "encoding_format": "base64", "user": "another"})
        refused = await client.post(again)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        small = await client.post({"model": "m", "input": "y"}, key="Bearer other")
        assert small.status == 200
    await until_held(client, at_most=0)
    assert (await client.post(again)).cache == "HIT"


async def test_response_over_the_memory_limit_is_written_alone(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(max_held_bytes=MIB)
    texts = [f"{n}" for n in range(400)]
    await fill(client, upstream, texts)
    answer = await client.embed(texts, encoding_format="base64")
    assert (answer.status, len(answer.embeddings)) == (200, 400)


async def test_disconnect_during_a_large_response_counts_as_499(client: Client, upstream: ScriptedUpstream) -> None:
    await fill(client, upstream, "x")
    body = orjson.dumps({"model": "m", "input": ["x"] * 2048, "encoding_format": "base64"})
    async with connected(client, receive_bytes=4096) as (reader, writer):
        writer.write(request_of(body))
        await reader.readuntil(b"\r\n\r\n")
    while not await client.metric("embedding_proxy_requests_total", status="499"):
        await asyncio.sleep(0)
    await until_held(client, at_most=0)


async def test_response_over_the_size_limit_is_refused(
    client: Client, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.embed("x")
    monkeypatch.setattr("proxy.embeddings.response_body._MAX_BODY_BYTES", 50_000)
    answer = await client.embed(["x"] * 2049)
    assert (answer.status, answer.json["error"]["code"]) == (413, "response_too_large")
    assert (await client.embed(["x"] * 2048)).status == 200


async def test_unread_written_response_counts_as_held(
    start_proxy: StartProxy, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.embeddings.responses.LARGE_BYTES", 64 * MIB)  # more than the kernel takes
    client = await start_proxy(max_held_bytes=16 * MIB)
    await fill(client, upstream, "x")
    body = orjson.dumps({"model": "m", "input": ["x"] * 1700, "encoding_format": "base64"})
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connected(client, receive_bytes=4096)) for _ in range(4)]
        for _, writer in connections:
            writer.write(request_of(body))
        while await client.metric("embedding_proxy_requests_total", outcome="hit") < 4:
            await asyncio.sleep(0)
        # One more would have more than its share, and is cut; others are served.
        assert 3 * MIB < await held(client) <= 8 * MIB
        assert (await client.post({"model": "m", "input": "y"}, key="Bearer other")).status == 200
        ends = await asyncio.gather(*(length_of(reader, writer) for reader, writer in connections))
        assert sorted(end >= 8 * MIB for end in ends) == [False, False, False, True]
    await until_held(client, at_most=0)


async def length_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """How much there is to read before the connection ends, or the response does."""
    size = 0
    with suppress(ConnectionError):
        while size < 8 * MIB and (chunk := await reader.read(MIB)):
            size += len(chunk)
    return size


# --- responses of upstreams


@pytest.mark.parametrize("element", [b"[],", b"{},", b'{"a":[]},'])
async def test_too_complex_200_is_relayed(
    client: Client, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, element: bytes
) -> None:
    body = b'{"data":[' + element * 1_000_000 + b"0]}"
    upstream.reply = error_reply(200, body)
    loads, parsed = orjson.loads, []

    def counting(text: Any) -> Any:
        parsed.append(len(text))
        return loads(text)

    monkeypatch.setattr(orjson, "loads", counting)
    answer = await client.embed("x")
    assert (answer.status, answer.body) == (200, body)
    assert await client.metric("embedding_proxy_upstream_rejected_total", reason="too-complex") == 1
    assert max(parsed) < 64 * KIB
    upstream.reply = None
    assert (await client.embed("x")).cache == "MISS"


def test_large_error_response_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = CIMultiDictProxy(CIMultiDict[str]())
    body = b'{"error":{"code":"context_length_exceeded"},"x":[' + b"[]," * 100_000 + b"0]}"
    answer = UpstreamAnswer(status=500, reason="", headers=fields, body=body)
    monkeypatch.setattr(orjson, "loads", None)
    assert b"context_length" not in in_own_words(answer).body


async def test_large_response_is_not_parsed_into_objects_at_once(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.dimensions = 1024
    answered = asyncio.Event()
    size = 0

    async def reply(call: Call) -> web.Response:
        nonlocal size
        response = upstream.embed(call)
        assert isinstance(response.body, bytes)
        size = len(response.body)
        answered.set()
        return response

    upstream.reply = reply
    tracemalloc.start()
    try:
        asked = asyncio.create_task(client.embed([f"{n}" for n in range(300)], encoding_format="float"))
        await answered.wait()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        assert (await asked).status == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 6 * size  # as objects alone they would be as much
