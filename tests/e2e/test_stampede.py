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
from tests.support.in_flight import settle_down, vouched_for, waiting
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted import Call, ScriptedUpstream, error_reply


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
