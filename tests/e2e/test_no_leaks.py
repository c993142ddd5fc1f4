"""A key and a text that only the upstream and their client may see."""

import asyncio
import json
import logging
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import orjson
import pybase64
import pytest
from aiohttp import ClientSession, WSMsgType, web
from redis.asyncio import Redis

from proxy.access import client_keys
from proxy.config.settings import StoreSetting, UpstreamSetting
from proxy.protocol.providers import PROVIDERS
from proxy.telemetry.log import JSONFormatter
from tests.conftest import StartProxy
from tests.support.client import Client, raw
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted import Call, Reply, ScriptedUpstream
from tests.support.settings import settings_for

KEY, TEXT = "sk-c4nary7key", "the c4nary7text sings"
BEARER = f"Bearer {KEY}"
CANARIES = [spelled for canary in ("c4nary7key", "c4nary7text") for spelled in (
    canary.encode(), canary[::-1].encode(), canary.encode().hex().encode(), canary.encode("utf-16-le"),
    *(pybase64.b64encode(b"x" * shift + canary.encode())[4:-4] for shift in range(3)),
)]  # fmt: skip


def canaries_in(said: bytes | str) -> list[bytes]:
    data = said.encode(errors="surrogateescape") if isinstance(said, str) else said
    return [canary for canary in CANARIES if canary.lower() in data.lower()]


# --- what is done with them

BYPASSES: dict[str, tuple[bytes | dict[str, object], dict[str, str]]] = {
    "not-json": (f'{{"model":"m","input":"{TEXT}'.encode(), {}),
    "not-an-object": (orjson.dumps([TEXT]), {}),
    "encoding": ({"model": "m", "input": TEXT, "encoding_format": TEXT}, {}),
    "stream": ({"model": "m", "input": TEXT, "stream": TEXT}, {}),
    "upstream-cache": ({"model": "m", "input": TEXT, "cache": TEXT}, {}),
    "remote-media": ({"model": "m", "input": [{"pdf": f"https://{TEXT}"}]}, {}),
    "token-range": ({"model": "m", "input": [-1], "user": TEXT}, {}),
    "too-deep": (f'{{"model":"m","input":"{TEXT}","task":{"[" * 500}{"]" * 500}}}'.encode(), {}),
    "duplicate-key": (f'{{"model":"m","input":"{TEXT}","input":"{TEXT}"}}'.encode(), {}),
    "content-type": ({"model": "m", "input": TEXT}, {"Content_Type": f"text/plain; charset={KEY}"}),
    "content-encoding": ({"model": "m", "input": TEXT}, {"Content_Encoding": f"br-{KEY}"}),
}


WHOLES: dict[str, dict[str, object]] = {
    "model": {"model": [TEXT], "input": TEXT},
    "unknown-field": {"model": "m", "input": TEXT, TEXT: TEXT},
    "input-form": {"model": "m", "input": {TEXT: 1}},
    "empty-item": {"model": "m", "input": [TEXT, ""]},
    "list-parameter": {"model": "m", "input": TEXT, "dimensions": [TEXT]},
}


def echo(call: Call) -> bytes:
    """All that the upstream was told, as a careless one repeats it."""
    said = {"target": call.target, "headers": dict(call.headers), "body": call.body.decode(errors="replace")}
    return orjson.dumps({"error": {"message": f"Incorrect API key or input: {said}"}})


def echoing(status: int) -> Reply:
    return lambda call: web.Response(status=status, body=echo(call), content_type="application/json", reason=TEXT)


def answering(upstream: ScriptedUpstream, **changes: object) -> Reply:
    """A 200 with something wrong in it, and the canaries."""
    return lambda call: web.json_response(upstream.answer_to(call.json, **changes) | {"echo": echo(call).decode()})


def stating_no_limit(upstream: ScriptedUpstream) -> Reply:
    """Good answers. The upstream's own state that few calls are left, and the proxy would wait among the errors."""
    return lambda call: web.json_response(upstream.answer_to(call.json))


def cut_off(call: Call) -> web.StreamResponse:
    assert call.request.transport is not None
    call.request.transport.abort()
    return web.Response()


def broken(call: Call) -> web.StreamResponse:
    """No HTTP, and in it what was sent."""
    assert call.request.transport is not None
    call.request.transport.write(f"HTTP/1.1 {KEY} {TEXT}\r\n{TEXT}\r\n\r\n".encode())
    call.request.transport.close()
    return web.Response()


async def half(call: Call) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100000"})
    await response.prepare(call.request)
    await response.write(echo(call))
    cut_off(call)
    return response


async def talk(call: Call) -> web.StreamResponse:
    socket = web.WebSocketResponse(protocols=[KEY])  # or aiohttp, as this upstream, would log that it knows none
    await socket.prepare(call.request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
    return socket


async def good(client: Client, upstream: ScriptedUpstream) -> None:
    for given, cache in ((TEXT, "MISS"), (TEXT, "HIT"), ([TEXT, TEXT + "!"], "PARTIAL")):
        assert (await client.embed(given, headers={"key": BEARER})).cache == cache
    body = {"model": "m", "input": TEXT, "user": KEY}
    for field in ("api-key", "x-api-key"):
        assert (await client.post(body, key=None, **{field: KEY})).status == 200
    assert (await client.post(body, target=f"/v1/embeddings?key={KEY}&text={TEXT.replace(' ', '+')}")).status == 200
    assert (await client.post(body, key=BEARER, Cache_Control="no-cache")).cache == "MISS"
    assert (await client.post(body | {"input": TEXT + "?"}, key=BEARER, Cache_Control="only-if-cached")).status == 504
    assert (await client.post({"model": "another", "input": [TEXT]}, key=BEARER)).cache == "MISS"


async def bypasses(client: Client, upstream: ScriptedUpstream) -> None:
    for status in (200, 400):
        upstream.reply = echoing(status)
        for reason, (body, headers) in BYPASSES.items():
            answer = await client.post(body, key=BEARER, **headers)
            assert (answer.status, answer.cache) == (status, "BYPASS")
            assert f"detail={reason}" in answer.headers["Cache-Status"]
            assert await client.metric("embedding_proxy_bypasses_total", reason=reason) > 0
        for reason, whole in WHOLES.items():
            answer = await client.post(whole, key=BEARER)
            assert (answer.status, answer.cache) == (status, "MISS")
            assert await client.metric("embedding_proxy_whole_body_requests_total", reason=reason) > 0


async def refusals(client: Client, upstream: ScriptedUpstream) -> None:
    for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503):
        upstream.reply = echoing(status)
        for given in (f"{TEXT} {status}", [TEXT, f"{TEXT} {status}"]):
            answer = await client.embed(given, headers={"key": BEARER})
            assert answer.status == status
            assert KEY.encode() in answer.body  # the client sees what the upstream said


async def malformed(client: Client, upstream: ScriptedUpstream) -> None:
    wrong: list[object] = [TEXT, {"error": TEXT}, [], [{"index": TEXT}], [{"index": 0, "embedding": TEXT}]]
    replies: list[Reply] = [answering(upstream, data=data) for data in wrong] + [
        answering(upstream, error=TEXT),
        echoing(200),
    ]
    replies.append(lambda call: web.Response(body=echo(call)[:-9], headers={"Content-Encoding": "gzip"}))
    for number, reply in enumerate(replies):
        upstream.reply = reply
        assert (await client.embed(f"{TEXT} malformed {number}", headers={"key": BEARER})).status == 200
    breaking: list[Reply] = [cut_off, broken, half]
    for number, reply in enumerate(breaking):
        upstream.reply = reply
        assert (await client.embed(f"{TEXT} broken {number}", headers={"key": BEARER})).status == 502


async def others(client: Client, upstream: ScriptedUpstream) -> None:
    headers = {"Authorization": BEARER, "X-Text": TEXT, "Cookie": f"session={KEY}"}
    for reply in (echoing(200), echoing(401), echoing(500), cut_off, broken, half):
        upstream.reply = reply
        for method, target in (("GET", f"/v1/files/{KEY}?q={KEY}"), ("POST", "/v1/chat/completions")):
            with suppress(aiohttp.ClientPayloadError):  # half of an answer
                await client.send(method, target, headers=headers, body=TEXT.encode() if method == "POST" else None)
    url = client.origin.replace("http", "ws") + f"/v1/realtime?key={KEY}"
    upstream.reply = talk
    async with client.session.ws_connect(url, headers=headers, protocols=[KEY]) as socket:
        await socket.send_str(TEXT)
        assert await socket.receive_str() == TEXT
    for reply in (echoing(403), cut_off, broken):
        upstream.reply = reply
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await client.session.ws_connect(url, headers=headers)


async def bad_http(client: Client, upstream: ScriptedUpstream) -> None:
    auth = f"Authorization: {BEARER}\r\n"
    for request in (
        f"{KEY} {TEXT}\r\n\r\n",
        f"POST /v1/embeddings HTTP/9.{KEY}\r\n{auth}\r\n",
        f"POST /v1/embeddings HTTP/1.1\r\n{auth}Content-Length: {TEXT}\r\n\r\n{TEXT}",
        f"POST /v1/embeddings HTTP/1.1\r\n{auth}Transfer-Encoding: chunked\r\n\r\n{TEXT}\r\n",
        f"POST /v1/embeddings HTTP/1.1\r\nHost: h\r\n{auth}X-{KEY}\0: {TEXT}\r\n\r\n",
        f"POST /v1/embeddings HTTP/1.1\r\nHost: h\r\n{auth}X: {TEXT * 9000}\r\n\r\n",
        f"POST http://{KEY}@h:x/v1/embeddings HTTP/1.1\r\nHost: {KEY}\r\n{auth}Content-Length: 0\r\n\r\n",
        f"CONNECT {KEY}:443 HTTP/1.1\r\nHost: h\r\n{auth}Connection: close\r\n\r\n",
    ):
        assert b" 200 " not in (await raw(client, request.encode())).partition(b"\r\n")[0]


async def departed(client: Client, upstream: ScriptedUpstream) -> None:
    """A client that leaves, while the upstream has its text."""
    arrived, gate = asyncio.Event(), asyncio.Event()

    async def held(call: Call) -> web.StreamResponse:
        arrived.set()
        await gate.wait()
        return echoing(500)(call)  # type: ignore[return-value]

    upstream.reply = held
    asking = asyncio.create_task(client.embed(f"{TEXT} and leaves", headers={"key": BEARER}))
    await arrived.wait()
    asking.cancel()
    await asyncio.wait([asking])
    gate.set()
    await client.proxy.fetcher.drain()


PATHS: list[Callable[[Client, ScriptedUpstream], Awaitable[None]]] = [
    good, bypasses, refusals, malformed, others, bad_http, departed,
]  # fmt: skip


# --- what is seen of them


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """All that was logged, by whomever and at any level, as people and as machines read it."""
    formats = (logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"), JSONFormatter())
    return "\n".join(formatter.format(record) for formatter in formats for record in caplog.records)


async def admin_pages(session: ClientSession, admin_url: str) -> bytes:
    pages = b""
    for path in ("/metrics", "/openapi.json", "/healthz", "/readyz", f"/{KEY}"):
        async with session.get(admin_url + path) as response:
            pages += str(response.headers).encode() + await response.read()
    return pages


def reprs(client: Client) -> str:
    proxy = client.proxy
    parts: list[object] = [proxy, proxy.fetcher, proxy.origins, proxy.origins.default, proxy.cache, proxy.client_keys]
    return " ".join(f"{part!r} {part}" for part in parts)


async def nothing_is_seen(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    assert [line for line in logged(caplog).splitlines() if canaries_in(line)] == []
    assert canaries_in(await admin_pages(client.session, client.proxy.admin_url)) == []
    assert canaries_in(reprs(client)) == []


@pytest.fixture(autouse=True)
def _hears_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url) as redis:
        await redis.flushall()
        yield redis


async def dump(redis: Redis) -> bytes:
    names = [name for name in await redis.keys("*") if isinstance(name, bytes)]
    return b"\n".join([*names, *(value for value in await redis.mget(names) if isinstance(value, bytes))])


def test_canary_is_found_in_any_encoding() -> None:
    for said in (KEY, TEXT.upper(), KEY.encode().hex(), json.dumps({"a": TEXT}), f"{TEXT!r}"[::-1]):
        assert canaries_in(said)
    for prefix in ("", "a", "ab"):
        assert canaries_in(pybase64.b64encode((prefix + KEY + TEXT).encode()))
    assert not canaries_in("canary")


@pytest.mark.parametrize("path", PATHS, ids=[path.__name__ for path in PATHS])
@pytest.mark.relays_refusals
async def test_no_request_path_leaks_canaries(
    start_proxy: StartProxy, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, redis_server: RedisServer,
    redis: Redis, sqlite_path: Path, path: Callable[[Client, ScriptedUpstream], Awaitable[None]],
) -> None:  # fmt: skip
    for store in (StoreSetting(url=redis_server.url), StoreSetting(path=sqlite_path)):
        client = await start_proxy(store=store)
        upstream.reply = None
        assert (await client.embed("warm-up", headers={"key": BEARER})).status == 200
        await path(client, upstream)
        await client.proxy.fetcher.drain()
        await nothing_is_seen(client, caplog)
    stored = await dump(redis)
    assert stored.count(b"embedding:") > 0
    files = list(sqlite_path.parent.glob(sqlite_path.name + "*"))
    assert files
    if path is not good:  # there the model has the text's name, which an answer says again
        assert canaries_in(stored) == []
        assert [file for file in files if canaries_in(file.read_bytes())] == []


async def test_store_holds_only_hashes_of_texts_and_keys(
    start_proxy: StartProxy, redis_server: RedisServer, redis: Redis, sqlite_path: Path
) -> None:
    for store in (StoreSetting(url=redis_server.url), StoreSetting(path=sqlite_path)):
        client = await start_proxy(store=store)
        for texts in ([TEXT], [TEXT, "other"], [f"{TEXT} {n}" for n in range(200)]):
            answer = await client.embed(texts, headers={"key": BEARER}, user=KEY, dimensions=8)
            assert answer.status == 200
    assert len(await redis.keys("embedding:*")) == 202
    assert canaries_in(await dump(redis)) == []
    for file in sqlite_path.parent.glob(sqlite_path.name + "*"):
        assert canaries_in(file.read_bytes()) == [], file


async def test_store_failures_leak_no_canaries(
    start_proxy: StartProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path)
    store = StoreSetting(url=f"redis://{KEY}:{KEY}@127.0.0.1:{server.port}/0")  # a user whom it does not know
    nowhere = StoreSetting(url=f"redis://:{KEY}@127.0.0.1:{free_port()}/0")
    for wrong in (store, nowhere, StoreSetting(path=Path("/proc/no/such"))):
        client = await start_proxy(store=wrong)
        await client.proxy.cache.probe_store()
        for n in range(7):
            assert (await client.embed([TEXT, f"{TEXT} {n}"], headers={"key": BEARER})).status == 200
        await nothing_is_seen(client, caplog)
    client = await start_proxy(store=StoreSetting(url=server.url))
    assert (await client.embed(TEXT, headers={"key": BEARER})).cache == "MISS"
    async with Redis.from_url(server.url) as redis:
        for name in await redis.keys("embedding:*"):
            assert isinstance(name, bytes)
            await redis.set(name, f"{KEY} {TEXT}")
    again = await start_proxy(store=StoreSetting(url=server.url))
    assert (await again.embed(TEXT, headers={"key": BEARER})).cache == "MISS"
    assert await again.metric("embedding_proxy_store_invalid_records_total", reason="checksum") > 0
    server.kill()
    for n in range(7):
        assert (await again.embed([TEXT, f"{TEXT} dead {n}"], headers={"key": BEARER})).status == 200
    assert "circuit open for store reads" in caplog.text
    await nothing_is_seen(again, caplog)


async def test_upstream_failures_leak_no_canaries(
    start_proxy: StartProxy, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()

    async def held(call: Call) -> web.StreamResponse:
        await gate.wait()
        return upstream.embed(call)

    upstream.reply = held
    late = await start_proxy(upstream_timeout_s=0.05, upstream_read_timeout_s=0.05)
    away = UpstreamSetting(name="away", base_url=f"http://127.0.0.1:{free_port()}/v1")
    for client, statuses in ((late, {504}), (await start_proxy(upstream=away), {502, 503})):
        for n in range(7):
            answer = await client.post(
                {"model": "m", "input": f"{TEXT} {n}"}, key=BEARER, target=f"/v1/embeddings?{KEY}"
            )
            assert answer.status in statuses
            assert canaries_in(answer.body) == []
        answer = await client.send("GET", f"/v1/files/{KEY}", headers={"Authorization": BEARER})
        assert answer.status in statuses | {502}
        await nothing_is_seen(client, caplog)
    gate.set()


@pytest.mark.parametrize("status", [200, 401, 403, 404, 429, 500])
@pytest.mark.relays_refusals
async def test_proxy_and_client_keys_are_not_leaked(
    start_proxy: StartProxy, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, tmp_path: Path, status: int
) -> None:
    own = UpstreamSetting(name="own", base_url=upstream.base_url, provider=PROVIDERS["openai"], key=KEY)
    client_key = client_keys.add(tmp_path / "clients", "app")
    client = await start_proxy(upstream=own, client_keys=tmp_path / "clients")
    settings = settings_for(
        upstream, upstream=own, record_key=KEY.encode(), store=StoreSetting(url=f"redis://:{KEY}@h")
    )
    assert canaries_in(f"{settings!r} {settings} {own!r} {own} {replace(settings, routed=(own,))!r}") == []
    upstream.reply = None if status == 200 else echoing(status)
    body = {"model": "m", "input": "a text that may be seen"}
    for wrong in (client_key + "x", f"wrong-{KEY}"):
        for target in ("/v1/embeddings", "/v1/models"):
            answer = await client.post(body, key=f"Bearer {wrong}", target=target)
            assert (answer.status, canaries_in(answer.body)) == (401, [])
    for sent in (body, body | {"stream": True}):
        answer = await client.post(sent, key=f"Bearer {client_key}")
        assert answer.status == {401: 502, 403: 502}.get(status, status)
        if status in {200, 401, 403}:
            assert canaries_in(answer.body + str(answer.headers).encode()) == []
    await nothing_is_seen(client, caplog)
    everything = logged(caplog) + reprs(client) + (await admin_pages(client.session, client.proxy.admin_url)).decode()
    assert client_key not in everything
    assert client_key.removeprefix("ep-") not in (tmp_path / "clients").read_text()
    assert all(client_key not in str(call.headers) for call in upstream.calls)


@pytest.mark.parametrize("log_format", ["console", "json"])
async def test_process_output_and_files_hold_no_canaries(
    upstream: ScriptedUpstream, tmp_path: Path, log_format: str
) -> None:
    """To its end: with its own handlers, what it prints at its start, and what it says as it drains."""
    server = RedisServer(tmp_path)
    command = [
        sys.executable, "-m", "proxy", "serve", "--port", "0", "--admin-port", "0", "--log-format", log_format,
        "--upstream", upstream.base_url, "--store", f"redis://:{KEY}@127.0.0.1:{server.port}/0",
        "--upstream-timeout", "5s",
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    said = b""
    while not (shown := re.findall(rb"http://127\.0\.0\.1:\d+(?=/v1\b|/metrics)", said)) or len(set(shown)) < 3:
        said += await process.stdout.readline()
    admin_url = next(url for url in re.findall(rb"(http://127\.0\.0\.1:\d+)/metrics", said)).decode()
    origin = next(
        url.decode()
        for url in re.findall(rb"(http://127\.0\.0\.1:\d+)/v1", said)
        if url not in upstream.base_url.encode()
    )
    headers = {"Authorization": BEARER, "Content-Type": "application/json"}
    usual = stating_no_limit(upstream)
    replies: list[Reply] = [usual, usual, echoing(401), echoing(404), echoing(500), cut_off, broken, half]
    async with ClientSession(headers=headers) as session:
        for number, reply in enumerate([*replies, answering(upstream, data=[TEXT])]):
            upstream.reply = reply
            for body in ({"input": [TEXT, f"{number}"]}, {"input": TEXT, TEXT: KEY}, {"input": TEXT, "stream": KEY}):
                with suppress(aiohttp.ClientPayloadError):
                    url = f"{origin}/v1/embeddings?key={KEY}"
                    async with session.post(url, json={"model": "demo"} | body) as response:
                        await response.read()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(origin.rpartition(":")[2]))
        writer.write(f"{KEY} {TEXT}\r\nX: {TEXT}\r\n\r\n".encode())
        await reader.read()
        writer.close()
        assert canaries_in(await admin_pages(session, admin_url)) == []
    process.send_signal(signal.SIGTERM)
    rest, _ = await process.communicate()
    server.kill()
    assert process.returncode == 0
    assert b"stopped" in rest
    assert b"relayed without caching" in said + rest
    assert canaries_in(said + rest) == []


# --- how many series there are

MODELS = 100_000 if IS_SLOW_PROFILE else 1_500
GOOD = 20  # every twentieth is one that the upstream has
AT_ONCE = 50


async def test_many_models_make_few_metric_series(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asyncio.get_running_loop().set_debug(False)  # a traceback for each callback is most of the time

    def reply(call: Call) -> web.StreamResponse:
        refused = web.json_response({"error": "no such model"}, status=404)
        return upstream.embed(call) if b"good" in call.body else refused

    async def ask(n: int) -> None:
        body: dict[str, object] = {"model": f"{n} {'good' if n % GOOD == 0 else 'bad'}", "input": "x"}
        answer = await client.post(body | ({"stream": f"odd {n}"} if n % 2 else {}), target=f"/v1/embeddings?n={n}")
        assert answer.status == (200 if n % GOOD == 0 else 404)

    upstream.reply = reply
    for start in range(0, MODELS, AT_ONCE):
        await asyncio.gather(*(ask(n) for n in range(start, start + AT_ONCE)))
        upstream.calls.clear()
    assert await client.metric("embedding_proxy_bypasses_total", reason="stream") == MODELS / 2
    async with client.session.get(client.proxy.admin_url + "/metrics") as response:
        text = await response.text()
    # Labels are what multiplies; the buckets of a histogram are but its resolution.
    series = {re.sub(r',?le="[^"]*"', "", line.rpartition(" ")[0]) for line in text.splitlines() if line[0] != "#"}
    families = Counter(re.sub(r"(_bucket|_sum|_count|_total)?({.*)?$", "", name) for name in series)
    models = {match[1] for name in series if (match := re.search(r'model="([^"]*)"', name))}
    assert len(families) > 10
    assert len(models) == 51  # 50, and the others
    # What multiplies with models are the few results, kinds and outcomes of each.
    assert max(families.values()) <= 51 * 6, families
