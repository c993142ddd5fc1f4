"""One upstream computation for each distinct item under concurrency; a failure stays with its own request."""

import asyncio
from collections import Counter
from typing import Any

import orjson
import pytest
from aiohttp import web

from proxy.config.settings import StoreSetting
from tests.conftest import StartProxy
from tests.support.client import Client, UpstreamResponse
from tests.support.gate import Gate
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted import Call, ScriptedUpstream, error_reply


async def settle_down(client: Client, flights: int) -> None:
    """Until so many keys are being fetched and everybody else waits."""
    while len(client.proxy.fetcher._flights) < flights:
        await asyncio.sleep(0)


async def waiting(client: Client, requests: int) -> None:
    """Until so many requests are in the proxy's hands."""
    in_flight = client.proxy.metrics.requests_in_flight
    while next(iter(in_flight.collect())).samples[0].value < requests:
        await asyncio.sleep(0)


async def test_thousand_identical_requests_are_one_upstream_item(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    requests = [asyncio.create_task(client.embed("x")) for _ in range(1000)]
    await waiting(client, 1000)
    gate.open()
    answers = await asyncio.gather(*requests)
    assert upstream.items == {'"x"': 1}
    assert {answer.status for answer in answers} == {200}
    assert len({answer.json["data"][0]["embedding"].__repr__() for answer in answers}) == 1
    assert sum(answer.json["usage"]["prompt_tokens"] for answer in answers) == 1
    assert await client.metric("embedding_proxy_items_total", result="joined") == 999
    assert Counter("collapsed" in answer.headers["Cache-Status"] for answer in answers) == {True: 999, False: 1}


async def test_leader_disconnect_fails_no_follower(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    leader = asyncio.create_task(client.embed("x"))
    await gate.calls(1)
    followers = [asyncio.create_task(client.embed("x")) for _ in range(99)]
    await waiting(client, 100)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    while (await client.metric("embedding_proxy_requests_in_flight")) > 99:
        await asyncio.sleep(0)
    gate.open()
    answers = await asyncio.gather(*followers)
    assert {(answer.status, answer.cache) for answer in answers} == {(200, "MISS")}
    assert upstream.items == {'"x"': 1}


async def test_result_without_waiters_is_stored(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    lonely = asyncio.create_task(client.embed("x"))
    await gate.calls(1)
    lonely.cancel()
    gate.open()
    await asyncio.gather(lonely, return_exceptions=True)
    await client.proxy.fetcher.drain()
    assert (await client.embed("x")).cache == "HIT"
    assert upstream.items == {'"x"': 1}


async def test_overlapping_batches_fetch_each_item_once(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    requests = [asyncio.create_task(client.embed([str(n), str(n + 1), str(n + 2)])) for n in range(50)]
    await waiting(client, 50)
    gate.open()
    answers = await asyncio.gather(*requests)
    assert set(upstream.items.values()) == {1}
    for n, answer in enumerate(answers):
        assert answer.vectors == [upstream.embedding({"model": "m"}, str(n + i), 16) for i in range(3)]


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.relays_refusals
async def test_followers_share_a_failure_common_to_all(client: Client, upstream: ScriptedUpstream, status: int) -> None:
    gate = asyncio.Event()

    async def fail(_: Call) -> web.Response:
        await gate.wait()
        return web.json_response({"error": {"message": "no"}}, status=status, headers={"retry-after": "7"})

    upstream.reply = fail
    requests = [asyncio.create_task(client.embed("x")) for _ in range(50)]
    await waiting(client, 50)
    gate.set()
    answers = await asyncio.gather(*requests)
    assert {(answer.status, answer.headers["retry-after"]) for answer in answers} == {(status, "7")}
    assert len(upstream.calls) == 1


async def test_followers_do_not_share_the_leaders_own_error(client: Client, upstream: ScriptedUpstream) -> None:
    gate = asyncio.Event()

    async def refuse_poison(call: Call) -> web.StreamResponse:
        await gate.wait()
        if "poison" in call.items:
            return web.json_response({"error": {"message": "bad item"}}, status=400)
        return upstream.embed(call)

    upstream.reply = refuse_poison
    leader = asyncio.create_task(client.embed(["x", "poison"]))
    await settle_down(client, 2)
    followers = [asyncio.create_task(client.embed("x")) for _ in range(10)]
    await waiting(client, 11)
    gate.set()
    assert (await leader).status == 400
    answers = await asyncio.gather(*followers)
    assert {answer.status for answer in answers} == {200}
    assert upstream.items['"x"'] == 2  # with the poison, and once without


async def test_misses_of_many_requests_are_merged(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    requests = [asyncio.create_task(client.embed(str(n))) for n in range(200)]
    await waiting(client, 200)
    gate.open()
    answers = await asyncio.gather(*requests)
    for n, answer in enumerate(answers):
        assert answer.vectors == [upstream.embedding({"model": "m"}, str(n), 16)]
    assert set(upstream.items.values()) == {1}
    assert len(upstream.calls) < 60
    assert sum(answer.json["usage"]["prompt_tokens"] for answer in answers) == sum(len(str(n)) for n in range(200))


async def test_no_merge_across_credentials_or_parameters(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    bodies: list[dict[str, Any]] = [
        {"model": model, "input": f"{n}", **extra}
        for n in range(5)
        for model in ("m", "n")
        for extra in ({}, {"dimensions": 4}, {"user": "u"}, {"encoding_format": "base64"})
    ]
    requests = [asyncio.create_task(client.post(body, key=f"Bearer {key}")) for body in bodies for key in ("a", "b")]
    await waiting(client, len(requests))
    gate.open()
    assert {answer.status for answer in await asyncio.gather(*requests)} == {200}
    for call in upstream.calls:
        said = {name: value for name, value in call.json.items() if name != "input"}
        assert all(said | {"input": item} in bodies for item in call.items)
    asked = [(call.headers["Authorization"], item) for call in upstream.calls for item in call.items]
    assert len(asked) == len(requests) - 2 * 2 * 5 * 2  # `user` and the encoding make no other vector


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_poison_item_fails_only_its_own_request(client: Client, upstream: ScriptedUpstream, status: int) -> None:
    gate = asyncio.Event()

    async def refuse_poison(call: Call) -> web.StreamResponse:
        await gate.wait()
        if "poison" in call.items:
            return web.json_response({"error": {"message": "bad item"}}, status=status)
        return upstream.embed(call)

    upstream.reply = refuse_poison
    first = asyncio.create_task(client.embed("first"))
    await settle_down(client, 1)
    texts = ["a", "b", "poison", "c"]
    rest = [asyncio.create_task(client.embed(text)) for text in texts]
    await waiting(client, 5)
    gate.set()
    assert (await first).status == 200
    assert [answer.status for answer in await asyncio.gather(*rest)] == [200, 200, status, 200]


async def test_invalid_merged_response_is_retried_separately(client: Client, upstream: ScriptedUpstream) -> None:
    gate = asyncio.Event()

    async def spoil_merged(call: Call) -> web.StreamResponse:
        await gate.wait()
        answer = upstream.answer_to(call.json)
        if len(call.items) > 1:
            answer["data"].pop()
        return web.json_response(answer)

    upstream.reply = spoil_merged
    first = asyncio.create_task(client.embed("first"))
    await settle_down(client, 1)
    rest = [asyncio.create_task(client.embed(text)) for text in "abc"]
    await waiting(client, 4)
    gate.set()
    answers = await asyncio.gather(first, *rest)
    assert [answer.vectors for answer in answers] == [
        [upstream.embedding({"model": "m"}, text, 16)] for text in ("first", *"abc")
    ]


async def test_request_over_the_call_limit_is_split(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(max_batch_items=8)
    texts = [str(n) for n in range(50)]
    answer = await client.embed(texts)
    assert answer.vectors == [upstream.embedding({"model": "m"}, text, 16) for text in texts]
    assert sorted(len(call.items) for call in upstream.calls) == [2, 8, 8, 8, 8, 8, 8]
    assert answer.json["usage"]["prompt_tokens"] == sum(map(len, texts))


@pytest.mark.relays_refusals
async def test_successful_parts_are_stored_when_another_fails(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(max_batch_items=2)
    upstream.reply = lambda call: (
        web.json_response({"error": {"message": "slow down"}}, status=429)
        if "d" in call.items
        else upstream.embed(call)
    )
    assert (await client.embed(["a", "b", "c", "d"])).status == 429
    assert (await client.embed(["a", "b"])).cache == "HIT"
    upstream.reply = None
    assert (await client.embed(["a", "b", "c", "d"])).cache == "PARTIAL"


async def vouched_for(replicas: list[Client], upstream: ScriptedUpstream) -> list[Client]:
    """Replicas that know of the credential; one that doesn't asks the upstream before it serves what others fetched."""
    for number, client in enumerate(replicas):
        await client.embed(f"who is this? {number}")
    upstream.calls.clear()
    return replicas


@pytest.mark.parametrize("fields", [{}, {"foo": 1}], ids=["item by item", "keyed as a whole"])
async def test_two_replicas_on_one_redis_fetch_once(
    start_proxy: StartProxy, upstream: ScriptedUpstream, redis_server: RedisServer, fields: dict[str, Any]
) -> None:
    store = StoreSetting(url=redis_server.url.replace("/0", "/4"))
    replicas = await vouched_for([await start_proxy(store=store) for _ in range(2)], upstream)
    gate = Gate(upstream)
    requests = [asyncio.create_task(client.embed("shared", **fields)) for client in replicas for _ in range(50)]
    for client in replicas:
        await waiting(client, 50)
    gate.open()
    answers = await asyncio.gather(*requests)
    assert upstream.items == {'"shared"': 1}
    assert len({orjson.dumps(answer.embeddings) for answer in answers}) == 1


async def test_replica_that_gives_up_releases_its_lease(
    start_proxy: StartProxy, upstream: ScriptedUpstream, redis_server: RedisServer
) -> None:
    store = StoreSetting(url=redis_server.url.replace("/0", "/5"))
    first, second = [await start_proxy(store=store) for _ in range(2)]
    gate = asyncio.Event()

    async def fail_the_first(call: Call) -> web.StreamResponse:
        await gate.wait()
        if len(upstream.calls) == 1:
            return web.json_response({"error": {"message": "no"}}, status=500)
        return upstream.embed(call)

    upstream.reply = fail_the_first
    leading = asyncio.create_task(first.embed("x"))
    while not upstream.calls:
        await asyncio.sleep(0)
    waiting_ = asyncio.create_task(second.embed("x"))
    await waiting(second, 1)
    gate.set()
    assert (await leading).status == 500
    assert (await waiting_).status == 200


async def test_refresh_does_not_join_a_fetch_in_progress(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    plain = asyncio.create_task(client.embed("x"))
    await gate.calls(1)
    refresh = asyncio.create_task(client.embed("x", headers={"Cache-Control": "no-cache"}))
    await waiting(client, 2)
    gate.open()
    assert [answer.cache for answer in await asyncio.gather(plain, refresh)] == ["MISS", "MISS"]
    assert upstream.items == {'"x"': 2}


async def test_full_queue_is_503_with_retry_after(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(max_queued_items=10)
    gate = Gate(upstream)
    held = asyncio.create_task(client.embed([str(n) for n in range(10)]))
    await gate.calls(1)
    refused = await client.embed("one more")
    assert (refused.status, refused.json["error"]["code"], refused.headers["Retry-After"]) == (503, "overloaded", "1")
    gate.open()
    assert (await held).status == 200
    assert (await client.embed("one more")).status == 200


async def test_too_many_queued_bytes_are_503(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(max_held_bytes=12_000)  # a text is held as JSON and as a string
    gate = Gate(upstream)
    held = asyncio.create_task(client.embed("x" * 4000))
    await gate.calls(1)
    assert (await client.embed("y" * 4000)).status == 503
    gate.open()
    assert (await held).status == 200
    assert (await client.embed("y" * 4000)).status == 200
    assert await client.metric("embedding_proxy_held_request_bytes") == 0


async def test_dead_kept_connection_is_retried_once(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed("warm")

    async def die(call: Call) -> web.StreamResponse:
        if upstream.items[f'"{call.items[0]}"'] == 1:
            assert call.request.transport is not None
            call.request.transport.abort()
        return upstream.embed(call)

    upstream.reply = die
    for text in ("a", "b", "c"):
        assert (await client.embed(text)).status == 200
    assert upstream.items == {'"warm"': 1, '"a"': 2, '"b"': 2, '"c"': 2}


async def test_dead_new_connection_is_not_retried(client: Client, upstream: ScriptedUpstream) -> None:
    async def die(call: Call) -> web.StreamResponse:
        assert call.request.transport is not None
        call.request.transport.abort()
        return upstream.embed(call)

    upstream.reply = die
    assert (await client.embed("a")).status == 502
    assert len(upstream.calls) == 1


async def test_connect_failures_open_the_circuit(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    await (await start_proxy()).embed("x")
    upstream.base_url = f"http://127.0.0.1:{free_port()}/v1"
    client = await start_proxy()
    answers = [await client.embed(str(n)) for n in range(10)]
    assert [answer.status for answer in answers] == [502] * 5 + [503] * 5
    assert answers[-1].headers["Retry-After"] == "2"
    assert await client.metric("embedding_proxy_breaker_state", circuit="upstream scripted") == 2


@pytest.mark.parametrize("status", [401, 429, 500])
@pytest.mark.relays_refusals
async def test_response_failures_do_not_open_the_circuit(
    client: Client, upstream: ScriptedUpstream, status: int
) -> None:
    upstream.reply = error_reply(status, {"error": {"message": "no"}})
    for n in range(20):
        assert (await client.embed(str(n))).status == status
    upstream.reply = None
    assert (await client.post({"model": "m", "input": "x"}, key="Bearer other")).status == 200


async def test_hanging_upstream_is_504_after_the_timeout(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(upstream_timeout_s=0.05)
    gate = Gate(upstream)
    answer: UpstreamResponse = await client.embed("x")
    assert (answer.status, answer.json["error"]["code"]) == (504, "upstream_timeout")
    gate.open()
    while (answer := await client.embed("x")).status == 504:
        pass  # a busy machine may take longer, too
    assert answer.status == 200


async def test_outage_causes_about_one_call_per_request(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = error_reply(500, {"error": {"message": "no"}})
    answers = await asyncio.gather(*(client.embed([str(n), str(n + 1)]) for n in range(200)))
    assert {answer.status for answer in answers} == {500}
    assert len(upstream.calls) <= 1.1 * 200


# --- what hostile reading found


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
