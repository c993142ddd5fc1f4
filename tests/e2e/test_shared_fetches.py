"""What clients that wait for one fetch have in common, and what none of them learns of another."""

import asyncio

import pytest
from aiohttp import web

from proxy.config.settings import StoreSetting
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.gate import Gate
from tests.support.in_flight import settle_down, vouched_for, waiting
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted import Call, ScriptedUpstream


async def test_idempotency_key_is_sent_only_with_the_clients_own_body(
    client: Client, upstream: ScriptedUpstream
) -> None:
    """An upstream that keeps its word answers a key again with what it answered first, whatever the body."""
    gate = Gate(upstream)
    first = asyncio.create_task(client.embed("first", headers={"Idempotency-Key": "k0"}))
    await gate.calls(1)
    merged = [asyncio.create_task(client.embed(text, headers={"Idempotency-Key": text})) for text in "ab"]
    await waiting(client, 3)
    gate.open()
    await asyncio.gather(first, *merged)
    await client.embed(["first", "c"], headers={"Idempotency-Key": "k1"})
    assert [call.headers.get("Idempotency-Key") for call in upstream.calls] == ["k0", None, None]
    assert [call.items for call in upstream.calls] == [["first"], ["a", "b"], ["c"]]


async def test_malformed_response_to_many_causes_no_stampede(client: Client, upstream: ScriptedUpstream) -> None:
    gate = asyncio.Event()

    async def spoil(call: Call) -> web.StreamResponse:
        await gate.wait()
        return web.json_response(upstream.answer_to(call.json, data=[]))

    upstream.reply = spoil
    requests = [asyncio.create_task(client.embed("x")) for _ in range(50)]
    await waiting(client, 50)
    gate.set()
    answers = await asyncio.gather(*requests)
    assert {(answer.status, len(answer.json["data"])) for answer in answers} == {(200, 0)}
    # Each in its turn asks apart, since the spoilt answer may have been about the others; but nobody asks twice.
    assert len(upstream.calls) <= 52


@pytest.mark.relays_refusals
async def test_follower_gets_its_own_failure(client: Client, upstream: ScriptedUpstream) -> None:
    gate = asyncio.Event()

    async def refuse(call: Call) -> web.StreamResponse:
        await gate.wait()
        if "poison" in call.items:
            return web.json_response({"error": {"message": "poison is bad"}}, status=400)
        return web.json_response({"error": {"message": "slow down"}}, status=429)

    upstream.reply = refuse
    leader = asyncio.create_task(client.embed(["x", "poison"]))
    await settle_down(client, 2)
    follower = asyncio.create_task(client.embed(["x", "y"]))
    await waiting(client, 2)
    gate.set()
    assert (await leader).status == 400
    answer = await follower
    assert (answer.status, answer.json["error"]["message"]) == (429, "slow down")


async def test_follower_never_gets_anothers_error(client: Client, upstream: ScriptedUpstream) -> None:
    """However often the key it waits for is led by a client with a bad item."""
    gate = asyncio.Event()

    async def refuse_poison(call: Call) -> web.StreamResponse:
        await gate.wait()
        if any(str(item).startswith("poison") for item in call.items):
            return web.json_response({"error": {"message": f"{call.items} is bad"}}, status=400)
        return upstream.embed(call)

    upstream.reply = refuse_poison
    poisoned = [asyncio.create_task(client.embed(["x", f"poison {n}"])) for n in range(5)]
    await settle_down(client, 6)
    innocent = [asyncio.create_task(client.embed("x")) for _ in range(5)]
    await waiting(client, 10)
    gate.set()
    assert {answer.status for answer in await asyncio.gather(*innocent)} == {200}
    assert {answer.status for answer in await asyncio.gather(*poisoned)} == {400}


async def test_recovered_upstream_serves_others_during_the_probe(
    start_proxy: StartProxy, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream.circuit._COOLDOWN_S", 0.0)
    good_url = upstream.base_url
    upstream.base_url = f"http://127.0.0.1:{free_port()}/v1"
    client = await start_proxy()
    for n in range(6):
        await client.embed(str(n))
    routes = client.proxy.origins.default.routes
    routes._embeddings = type(routes._embeddings)(good_url + "/embeddings", is_embeddings=True)
    gate = Gate(upstream)
    probe = asyncio.create_task(client.embed("slow"))
    await gate.calls(1)
    others = [asyncio.create_task(client.post({"model": "n", "input": str(n)})) for n in range(5)]
    await gate.calls(2)
    gate.open()
    assert {answer.status for answer in await asyncio.gather(probe, *others)} == {200}


async def test_slow_response_on_a_kept_connection_is_not_retried(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(upstream_read_timeout_s=0.05)
    await client.embed("warm")
    gate = Gate(upstream)
    assert (await client.embed("x")).status == 504
    assert gate.arrived == 1
    gate.open()


async def test_one_tenant_cannot_take_every_slot(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(upstream_concurrency=4, max_batch_items=1)
    gate = asyncio.Event()

    async def stuck(call: Call) -> web.StreamResponse:
        if call.json["model"] == "stuck":
            await gate.wait()
        return upstream.embed(call)

    upstream.reply = stuck
    held = [asyncio.create_task(client.embed(str(n), model="stuck")) for n in range(20)]
    await waiting(client, 20)
    assert (await client.post({"model": "quick", "input": "x"}, key="Bearer other")).status == 200
    gate.set()
    assert {answer.status for answer in await asyncio.gather(*held)} == {200}


async def test_tenant_with_a_long_queue_cannot_take_every_slot(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """When its first call returns, all that waits would go at once."""
    client = await start_proxy(upstream_concurrency=4, max_batch_items=1)
    first, rest = asyncio.Event(), asyncio.Event()

    async def stuck(call: Call) -> web.StreamResponse:
        if call.json["model"] == "stuck":
            await (first if len(upstream.calls) <= 2 else rest).wait()
        return upstream.embed(call)

    upstream.reply = stuck
    held = [asyncio.create_task(client.embed(str(n), model="stuck")) for n in range(20)]
    await waiting(client, 20)
    first.set()
    await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
    assert (await client.post({"model": "quick", "input": "x"}, key="Bearer other")).status == 200
    rest.set()
    assert {answer.status for answer in await asyncio.gather(*held)} == {200}


async def test_idle_uploads_do_not_block_others(start_proxy: StartProxy) -> None:
    client = await start_proxy(max_held_bytes=100_000, max_body_bytes=50_000)
    host, port = client.origin.removeprefix("http://").split(":")
    sockets = []
    for _ in range(10):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\nx")
        sockets.append((reader, writer))
    await waiting(client, 10)
    assert (await client.embed("x")).status == 200
    for _, writer in sockets:
        writer.close()
        await writer.wait_closed()


async def test_upstream_alternating_between_two_models_is_relayed(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(max_batch_items=2)
    turns = iter(range(1000))

    def alternate(call: Call) -> web.Response:
        dimensions = 16 if next(turns) % 2 else 8
        return web.json_response(upstream.answer_to(call.json | {"dimensions": dimensions}))

    upstream.reply = alternate
    answer = await client.embed(["a", "b", "c", "d"])
    assert len({len(numbers) for numbers in answer.vectors}) == 1
    assert len(answer.vectors) == 4


async def test_full_store_is_still_read_under_load(
    start_proxy: StartProxy, upstream: ScriptedUpstream, redis_server: RedisServer
) -> None:
    """A cold replica before a full Redis, under large batches: what takes long is not therefore gone."""
    store = StoreSetting(url=redis_server.url.replace("/0", "/6"))
    upstream.dimensions = 256
    texts = [f"text {n}" for n in range(1024)]
    await (await start_proxy(store=store)).embed(texts, encoding_format="base64")
    cold = await start_proxy(store=store)
    answers = await asyncio.gather(*(cold.embed(texts[n:] + texts[:n], encoding_format="base64") for n in range(6)))
    assert {answer.status for answer in answers} == {200}
    assert await cold.metric("embedding_proxy_breaker_state", circuit="store_read") == 0


async def test_items_fetched_by_another_replica_are_not_billed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, redis_server: RedisServer
) -> None:
    store = StoreSetting(url=redis_server.url.replace("/0", "/7"))
    first, second = await vouched_for([await start_proxy(store=store) for _ in range(2)], upstream)
    gate = Gate(upstream)
    asking = asyncio.create_task(first.embed("billed once"))
    await gate.calls(1)
    waiting_ = asyncio.create_task(second.embed("billed once"))
    await waiting(second, 1)
    gate.open()
    assert (await asking).json["usage"]["prompt_tokens"] == 11
    answer = await waiting_
    assert answer.json["usage"]["prompt_tokens"] == 0
    assert answer.headers["X-Cache-Saved-Tokens"] == "11"
    assert await second.metric("embedding_proxy_items_total", result="upstream") == 1  # the one before
