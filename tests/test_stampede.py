"""One upstream computation for each distinct item, however many ask at once, and nobody pays for another's failure."""

import asyncio
from collections import Counter
from typing import Any

import orjson
import pytest
from aiohttp import web

from proxy.config import StoreSetting
from tests.client import Answer, Client
from tests.conftest import StartProxy
from tests.redis_server import RedisServer, free_port
from tests.scripted import Call, ScriptedUpstream, error_reply


class Gate:
    """Holds the upstream's answers until it is opened; ``arrived`` counts the calls that wait."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        self._open = asyncio.Event()
        self._changed = asyncio.Condition()
        self.arrived = 0
        upstream.reply = self._reply

    async def _reply(self, call: Call) -> web.StreamResponse:
        async with self._changed:
            self.arrived += 1
            self._changed.notify_all()
        await self._open.wait()
        return self._upstream.embed(call)

    async def calls(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.arrived >= count)

    def open(self) -> None:
        self._open.set()


async def settle_down(client: Client, flights: int) -> None:
    """Until so many keys are being fetched and everybody else waits."""
    while len(client.proxy.fetcher._flights) < flights:
        await asyncio.sleep(0)


async def waiting(client: Client, requests: int) -> None:
    """Until so many requests are in the proxy's hands."""
    while (await client.metric("embedding_proxy_requests_in_flight")) < requests:
        await asyncio.sleep(0)


async def test_a_thousand_identical_requests_are_one_item_upstream(client: Client, upstream: ScriptedUpstream) -> None:
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


async def test_the_leaders_departure_costs_nobody_anything(client: Client, upstream: ScriptedUpstream) -> None:
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


async def test_what_nobody_waits_for_any_more_is_stored_all_the_same(
    client: Client, upstream: ScriptedUpstream
) -> None:
    gate = Gate(upstream)
    lonely = asyncio.create_task(client.embed("x"))
    await gate.calls(1)
    lonely.cancel()
    gate.open()
    await asyncio.gather(lonely, return_exceptions=True)
    await client.proxy.fetcher.drain()
    assert (await client.embed("x")).cache == "HIT"
    assert upstream.items == {'"x"': 1}


async def test_overlapping_batches_ask_for_each_item_once(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    requests = [asyncio.create_task(client.embed([str(n), str(n + 1), str(n + 2)])) for n in range(50)]
    await waiting(client, 50)
    gate.open()
    answers = await asyncio.gather(*requests)
    assert set(upstream.items.values()) == {1}
    for n, answer in enumerate(answers):
        assert answer.vectors == [upstream.embedding({"model": "m"}, str(n + i), 16) for i in range(3)]


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_waiters_share_what_they_would_get_themselves(
    client: Client, upstream: ScriptedUpstream, status: int
) -> None:
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


async def test_waiters_do_not_share_the_leaders_own_mistake(client: Client, upstream: ScriptedUpstream) -> None:
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


async def test_misses_of_many_requests_travel_together(client: Client, upstream: ScriptedUpstream) -> None:
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


async def test_nothing_is_merged_across_credentials_or_parameters(client: Client, upstream: ScriptedUpstream) -> None:
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
async def test_one_poison_item_in_a_merged_call_fails_its_own_caller_alone(
    client: Client, upstream: ScriptedUpstream, status: int
) -> None:
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


async def test_a_spoilt_answer_to_a_merged_call_is_asked_again_apart(
    client: Client, upstream: ScriptedUpstream
) -> None:
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


async def test_what_is_too_large_for_one_call_goes_in_several(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(max_batch_items=8)
    texts = [str(n) for n in range(50)]
    answer = await client.embed(texts)
    assert answer.vectors == [upstream.embedding({"model": "m"}, text, 16) for text in texts]
    assert sorted(len(call.items) for call in upstream.calls) == [2, 8, 8, 8, 8, 8, 8]
    assert answer.json["usage"]["prompt_tokens"] == sum(map(len, texts))


async def test_parts_that_were_paid_for_are_kept_when_another_fails(
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


async def test_two_replicas_on_one_redis_ask_once(
    start_proxy: StartProxy, upstream: ScriptedUpstream, redis_server: RedisServer
) -> None:
    store = StoreSetting(url=redis_server.url.replace("/0", "/4"))
    replicas = [await start_proxy(store=store) for _ in range(2)]
    gate = Gate(upstream)
    requests = [asyncio.create_task(client.embed("shared")) for client in replicas for _ in range(50)]
    for client in replicas:
        await waiting(client, 50)
    gate.open()
    answers = await asyncio.gather(*requests)
    assert upstream.items == {'"shared"': 1}
    assert len({orjson.dumps(answer.embeddings) for answer in answers}) == 1


async def test_a_replica_that_gives_up_lets_another_try(
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


async def test_refreshes_do_not_join_what_is_under_way(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    plain = asyncio.create_task(client.embed("x"))
    await gate.calls(1)
    refresh = asyncio.create_task(client.embed("x", headers={"Cache-Control": "no-cache"}))
    await waiting(client, 2)
    gate.open()
    assert [answer.cache for answer in await asyncio.gather(plain, refresh)] == ["MISS", "MISS"]
    assert upstream.items == {'"x"': 2}


async def test_a_full_queue_is_a_503_that_says_when_to_come_back(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(max_queued_items=10)
    gate = Gate(upstream)
    held = asyncio.create_task(client.embed([str(n) for n in range(10)]))
    await gate.calls(1)
    refused = await client.embed("one more")
    assert (refused.status, refused.json["error"]["code"], refused.headers["Retry-After"]) == (503, "overloaded", "1")
    gate.open()
    assert (await held).status == 200
    assert (await client.embed("one more")).status == 200


async def test_too_many_bytes_at_once_are_a_503(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(max_held_bytes=5000)
    gate = Gate(upstream)
    held = asyncio.create_task(client.embed("x" * 4000))
    await gate.calls(1)
    assert (await client.embed("y" * 4000)).status == 503
    gate.open()
    assert (await held).status == 200
    assert (await client.embed("y" * 4000)).status == 200
    assert await client.metric("embedding_proxy_held_request_bytes") == 0


async def test_a_kept_connection_that_dies_costs_a_second_try_and_no_request(
    client: Client, upstream: ScriptedUpstream
) -> None:
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


async def test_a_new_connection_that_dies_is_not_tried_again(client: Client, upstream: ScriptedUpstream) -> None:
    async def die(call: Call) -> web.StreamResponse:
        assert call.request.transport is not None
        call.request.transport.abort()
        return upstream.embed(call)

    upstream.reply = die
    assert (await client.embed("a")).status == 502
    assert len(upstream.calls) == 1


async def test_an_upstream_that_cannot_be_connected_to_is_soon_left_alone(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    await (await start_proxy()).embed("x")
    upstream.base_url = f"http://127.0.0.1:{free_port()}/v1"
    client = await start_proxy()
    answers = [await client.embed(str(n)) for n in range(10)]
    assert [answer.status for answer in answers] == [502] * 5 + [503] * 5
    assert answers[-1].headers["Retry-After"] == "2"
    assert await client.metric("embedding_proxy_breaker_state", circuit="upstream") == 2


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_no_answer_opens_the_breaker_for_others(client: Client, upstream: ScriptedUpstream, status: int) -> None:
    upstream.reply = error_reply(status, {"error": {"message": "no"}})
    for n in range(20):
        assert (await client.embed(str(n))).status == status
    upstream.reply = None
    assert (await client.post({"model": "m", "input": "x"}, key="Bearer other")).status == 200


async def test_an_upstream_that_hangs_is_a_504_in_its_time(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(upstream_timeout_s=0.05)
    gate = Gate(upstream)
    answer: Answer = await client.embed("x")
    assert (answer.status, answer.json["error"]["code"]) == (504, "upstream_timeout")
    gate.open()
    assert (await client.embed("x")).status == 200


async def test_as_many_attempts_as_requests_when_everything_fails(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = error_reply(500, {"error": {"message": "no"}})
    answers = await asyncio.gather(*(client.embed([str(n), str(n + 1)]) for n in range(200)))
    assert {answer.status for answer in answers} == {500}
    assert len(upstream.calls) <= 1.1 * 200
