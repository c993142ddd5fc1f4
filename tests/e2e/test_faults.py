"""A failure of the store, the upstream or a client fails no other request."""

import asyncio
import gc
import gzip
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from proxy.config.settings import StoreSetting
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.redis_server import RedisServer
from tests.support.scripted import Call, ScriptedUpstream


def right(upstream: ScriptedUpstream, text: str) -> list[list[float]]:
    return [list(upstream.embedding({"model": "m"}, text, upstream.dimensions))]  # type: ignore[arg-type]


# --- the store

Break = Callable[[RedisServer], None]
BREAKS: dict[str, tuple[Break, Break]] = {
    "killed": (RedisServer.kill, RedisServer.restart),
    "hung": (
        lambda server: server.process.send_signal(signal.SIGSTOP),
        lambda server: server.process.send_signal(signal.SIGCONT),
    ),
    "full": (lambda server: server.command("CONFIG", "SET", "maxmemory", "1"), lambda server: None),
    "read-only": (
        lambda server: server.command("REPLICAOF", "127.0.0.1", "1"),
        lambda server: server.command("REPLICAOF", "NO", "ONE"),
    ),
    "locked out": (
        lambda server: server.command("CONFIG", "SET", "requirepass", "other"),
        lambda server: None,
    ),
}


@pytest.mark.parametrize("how", BREAKS)
async def test_store_failure_under_load_fails_no_request(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, how: str
) -> None:
    server = RedisServer(tmp_path)
    client = await start_proxy(store=StoreSetting(url=server.url), store_timeout_s=0.05)
    break_, mend = BREAKS[how]
    try:
        for number in range(60):
            if number == 20:
                break_(server)
            if number == 40:
                mend(server)
            texts = [f"{number}-{n}" for n in range(5)] + ["always"]
            answers = await asyncio.gather(*(client.embed(text) for text in texts))
            assert [answer.status for answer in answers] == [200] * 6
            assert [answer.vectors for answer in answers] == [right(upstream, text) for text in texts]
    finally:
        server.kill()


async def test_hits_return_when_the_store_recovers(start_proxy: StartProxy, tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    store = StoreSetting(url=server.url)
    first = await start_proxy(store=store)
    await first.embed("kept")
    server.kill()
    second = await start_proxy(store=store)
    for number in range(10):
        assert (await second.embed(f"other {number}")).status == 200
    server.restart()
    number = 0
    while await second.metric("embedding_proxy_breaker_state", circuit="store_read") != 0:
        number += 1
        assert (await second.embed(f"another {number}")).status == 200
    assert (await second.embed("kept")).cache == "HIT"
    server.kill()


async def test_store_that_becomes_available_is_logged(
    start_proxy: StartProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path)
    server.kill()
    client = await start_proxy(store=StoreSetting(url=server.url))
    await client.proxy.cache.probe_store()
    assert "store not available (connection" in caplog.text
    server.restart()
    for _ in range(2):
        await client.embed(["x"], headers={"Cache_Control": "max-age=0"})
    assert caplog.text.count("store available") == 1
    server.kill()


# --- the upstream

Fault = Callable[[ScriptedUpstream, Call], Awaitable[web.StreamResponse]]


async def reset_at_once(_: ScriptedUpstream, call: Call) -> web.StreamResponse:
    assert call.request.transport is not None
    call.request.transport.abort()
    return web.Response()


async def reset_mid_body(upstream: ScriptedUpstream, call: Call) -> web.StreamResponse:
    body = orjson.dumps(upstream.answer_to(call.json))
    response = web.StreamResponse(headers={"Content-Length": str(len(body))})
    await response.prepare(call.request)
    await response.write(body[: len(body) // 2])
    assert call.request.transport is not None
    call.request.transport.abort()
    return response


async def end_mid_chunks(upstream: ScriptedUpstream, call: Call) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(call.request)
    await response.write(orjson.dumps(upstream.answer_to(call.json))[:-10])
    assert call.request.transport is not None
    call.request.transport.abort()
    return response


def changed(change: Callable[[dict[str, object], list[dict[str, object]]], object]) -> Fault:
    async def fault(upstream: ScriptedUpstream, call: Call) -> web.StreamResponse:
        answer = upstream.answer_to(call.json)
        change(answer, answer["data"])
        return web.json_response(answer)

    return fault


def answered(status: int = 200, body: bytes = b"", **headers: str) -> Fault:
    async def fault(_upstream: ScriptedUpstream, _call: Call) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return fault


FAULTS: dict[str, Fault] = {
    "reset at once": reset_at_once,
    "reset in the middle of the body": reset_mid_body,
    "end in the middle of the chunks": end_mid_chunks,
    "one vector too few": changed(lambda _, data: data.pop()),
    "one vector too many": changed(lambda _, data: data.append(data[0] | {"index": len(data)})),
    "no vectors": changed(lambda answer, _: answer.update(data=[])),
    "no data": changed(lambda answer, _: answer.pop("data")),
    "null data": changed(lambda answer, _: answer.update(data=None)),
    "an error in a 200": changed(lambda answer, _: answer.update(error={"message": "no"})),
    "an index twice": changed(lambda _, data: data[0].update(index=data[-1]["index"])),
    "an index missing": changed(lambda _, data: data[-1].pop("index")),
    "an index too high": changed(lambda _, data: data[0].update(index=len(data))),
    "a negative index": changed(lambda _, data: data[0].update(index=-1)),
    "an index that is text": changed(lambda _, data: data[0].update(index="0")),
    "one vector longer": changed(lambda _, data: data[0]["embedding"].append(1.0)),  # type: ignore[attr-defined]
    "an empty vector": changed(lambda _, data: data[0].update(embedding=[])),
    "a null vector": changed(lambda _, data: data[0].update(embedding=None)),
    "a vector of zeros": changed(lambda _, data: data[0].update(embedding=[0.0] * 16)),
    "a vector of texts": changed(lambda _, data: data[0].update(embedding=["1"] * 16)),
    "a vector of vectors": changed(lambda _, data: data[0].update(embedding=[[1.0] * 16])),
    "base64 that is none": changed(lambda _, data: data[0].update(embedding="?!")),
    "base64 of NaN": changed(lambda _, data: data[0].update(embedding="AADAfwAAwH8=")),
    "NaN": answered(body=b'{"data":[{"index":0,"embedding":[NaN]},{"index":1,"embedding":[1.0]}]}'),
    "infinity": answered(body=b'{"data":[{"index":0,"embedding":[1e999]},{"index":1,"embedding":[1.0]}]}'),
    "no JSON": answered(body=b"<html>busy</html>"),
    "nothing": answered(),
    "half of a JSON": answered(body=b'{"data":[{"index":0,"embed'),
    "gzip that is none": answered(body=b"\x1f\x8b no", Content_Encoding="gzip"),
    "a coding of its own": answered(body=b"?", Content_Encoding="zstd"),
    "201": answered(201, b'{"data":[]}'),
    "204": answered(204),
    "302": answered(302, Location="http://127.0.0.1:1/"),
    "429": answered(429, b'{"error":{}}', Retry_After="1"),
    "500": answered(500, b"oops"),
    "529": answered(529, b"overloaded"),
}


# The other vector of the same response is as good as any, and stored.
ONE_UNUSABLE = frozenset(
    {
        "an empty vector", "a null vector", "a vector of zeros", "a vector of texts", "a vector of vectors",
        "base64 that is none", "base64 of NaN",
    }
)  # fmt: skip


@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("is_partial", [False, True], ids=["alone", "with a hit"])
@pytest.mark.relays_refusals
async def test_invalid_response_is_not_stored(
    client: Client, upstream: ScriptedUpstream, how: str, is_partial: bool
) -> None:
    if is_partial:
        await client.embed("known")
    texts = ["a", "b", *(["known"] if is_partial else [])]
    upstream.reply = lambda call: FAULTS[how](upstream, call)
    for _ in range(2):
        await client.embed(texts)
    upstream.reply = None
    answer = await client.embed(texts)
    assert answer.cache == ("PARTIAL" if is_partial or how in ONE_UNUSABLE else "MISS")
    assert answer.vectors == [right(upstream, text)[0] for text in texts]
    await client.proxy.fetcher.drain()
    assert repr(client.proxy.fetcher) == "<Fetcher <Flights 0 under way>, <Batcher 0 groups, 0 calls, 0 items>>"


async def test_endless_response_is_cut_off(
    client: Client, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream.client._MAX_RESPONSE_BYTES", 1_000_000)

    async def endless(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(call.request)
        while True:
            await response.write(b" " * 65536)

    upstream.reply = endless
    assert (await client.embed("x")).status == 502
    upstream.reply = None
    assert (await client.embed("x")).cache == "MISS"


async def test_gzip_bomb_from_the_upstream_is_relayed_unchanged(
    client: Client, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream.client._MAX_RESPONSE_BYTES", 1_000_000)
    bomb = gzip.compress(b" " * 100_000_000)
    upstream.reply = lambda _: web.Response(body=bomb, headers={"Content-Encoding": "gzip"})
    assert (await client.embed("x")).body == bomb


# --- the wire


class ChaosProxy:
    """Carries bytes between the proxy and the upstream, and now and then delays them or cuts the connection."""

    def __init__(self, target_port: int, seed: int) -> None:
        self._target_port = target_port
        self._random = random.Random(seed)
        self._connections: set[asyncio.Task[None]] = set()
        self.cuts = 0

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(self._random.choice([1, 100, 65536])):
            dice = self._random.random()
            if dice < 0.01:
                self.cuts += 1
                raise ConnectionResetError
            if dice < 0.1:
                await asyncio.sleep(self._random.random() / 200)
            sink.write(chunk)
            await sink.drain()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        ways = [
            asyncio.create_task(self._carry(reader, there_writer)),
            asyncio.create_task(self._carry(there_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, there_writer):
                end.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        yield server.sockets[0].getsockname()[1]
        server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


@pytest.mark.parametrize("seed", range(200 if IS_SLOW_PROFILE else 4))
async def test_unreliable_network_loses_no_request_and_corrupts_no_vector(
    start_proxy: StartProxy, upstream: ScriptedUpstream, seed: int
) -> None:
    chaos = ChaosProxy(int(upstream.base_url.split(":")[2].split("/")[0]), seed)
    dice = random.Random(seed)
    async with chaos.serving() as port:
        upstream.base_url = f"http://127.0.0.1:{port}/v1"
        client = await start_proxy()

        async def ask() -> int:
            texts = [str(dice.randrange(40)) for _ in range(dice.randint(1, 6))]
            request = asyncio.create_task(client.embed(texts))
            if dice.random() < 0.1:
                await asyncio.sleep(dice.random() / 100)
                request.cancel()
                await asyncio.gather(request, return_exceptions=True)
                return 0
            answer = await request
            if answer.status == 200:
                assert answer.vectors == [right(upstream, text)[0] for text in texts]
            return answer.status

        for _ in range(5):
            statuses = await asyncio.gather(*(ask() for _ in range(40)))
            assert set(statuses) <= {0, 200, 502}
        assert statuses.count(200) > 0
        await client.proxy.fetcher.drain()
        assert "0 groups, 0 calls, 0 items" in repr(client.proxy.fetcher)


# --- the client


async def test_disconnecting_clients_leak_nothing_and_fail_no_others(
    client: Client, upstream: ScriptedUpstream
) -> None:
    async def slow(call: Call) -> web.StreamResponse:
        await asyncio.sleep(0.001)
        return upstream.embed(call)

    upstream.reply = slow
    dice = random.Random(1)

    async def leave(number: int) -> None:
        request = asyncio.create_task(client.embed([str(number), "shared"]))
        for _ in range(dice.randrange(30)):
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    async def rest() -> tuple[int, int]:
        await client.proxy.fetcher.drain()
        while await client.metric("embedding_proxy_requests_in_flight") > 0:
            await asyncio.sleep(0)
        await client.session.close()
        client.session = type(client.session)()
        await client.embed("warm")
        gc.collect()
        return len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))

    before = await rest()
    for start in range(0, 10_000 if IS_SLOW_PROFILE else 500, 50):
        await asyncio.gather(*(leave(start + n) for n in range(50)))
    after = await rest()
    await client.session.close()
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 4
    assert await_nothing(client) == (0, 0)


def await_nothing(client: Client) -> tuple[int, int]:
    fetcher = client.proxy.fetcher
    return len(fetcher._flights), fetcher._batcher._queue.items
