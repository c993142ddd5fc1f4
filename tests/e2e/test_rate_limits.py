"""What an upstream refuses for its rate limit waits, and is sent again: no request fails while its client waits."""

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web

from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.gate import Gate
from tests.support.in_flight import waiting
from tests.support.scripted import Call, Reply, ScriptedUpstream

WAIT_S = 60.0
SOON = {"retry-after-ms": "1"}


def error(status: int, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": "no", "code": "some_code"}}, status=status, headers=headers)


def refusing(upstream: ScriptedUpstream, times: int, status: int = 429, headers: dict[str, str] | None = None) -> Reply:
    """Refuse so many calls, and answer those after."""

    def reply(call: Call) -> web.Response:
        if len(upstream.calls) <= times:
            return error(status, headers=SOON if headers is None else headers)
        return upstream.embed(call)

    return reply


@pytest.fixture
async def patient(start_proxy: StartProxy) -> Client:
    return await start_proxy(rate_limit_wait_s=WAIT_S)


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_refused_call_is_sent_again(patient: Client, upstream: ScriptedUpstream, status: int) -> None:
    upstream.reply = refusing(upstream, 3, status)
    answer = await patient.embed(["a", "b"])
    assert (answer.status, answer.cache, len(upstream.calls)) == (200, "MISS", 4)
    assert int(answer.headers["X-RateLimit-Wait-Ms"]) >= 0
    assert (await patient.embed(["a", "b"])).cache == "HIT"


async def test_error_429_inside_a_200_is_sent_again(patient: Client, upstream: ScriptedUpstream) -> None:
    def reply(call: Call) -> web.Response:
        if len(upstream.calls) == 1:
            return web.json_response({"error": {"message": "slow down", "code": 429}}, headers=SOON)
        return upstream.embed(call)

    upstream.reply = reply
    assert (await patient.embed("a")).status == 200


async def test_google_retry_info_is_followed(patient: Client, upstream: ScriptedUpstream) -> None:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.001s"}

    def reply(call: Call) -> web.Response:
        if len(upstream.calls) == 1:
            return web.json_response({"error": {"code": 429, "details": [info]}}, status=429)
        return upstream.embed(call)

    upstream.reply = reply
    assert (await patient.embed("a")).status == 200


@pytest.mark.parametrize(
    "reply",
    [
        lambda _: error(500),
        lambda _: error(503),  # without Retry-After: an outage
        lambda _: error(400),
        lambda _: web.json_response({"error": {"code": "insufficient_quota"}}, status=429, headers=SOON),
        lambda _: web.json_response({"error": {"type": "insufficient_quota", "code": None}}, status=429, headers=SOON),
        lambda _: web.json_response({"error": {"type": "budget_exceeded", "code": "429"}}, status=429, headers=SOON),
        lambda _: error(429, headers=SOON | {"x-should-retry": "false"}),
    ],
)
async def test_other_errors_do_not_wait(
    patient: Client, upstream: ScriptedUpstream, reply: Callable[[Call], web.Response]
) -> None:
    upstream.reply = reply
    answer = await patient.embed("a")
    assert answer.status == reply(upstream.calls[0]).status
    assert "X-RateLimit-Wait-Ms" not in answer.headers


async def test_wait_longer_than_the_patience_is_not_waited_for(patient: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda _: error(429, headers={"Retry-After": "3600", "x-secret": "1"})
    answer = await patient.embed("a")
    assert (answer.status, answer.headers["Retry-After"], len(upstream.calls)) == (429, "3600", 1)
    assert answer.headers["x-secret"] == "1"  # as the upstream sent it


async def test_client_says_how_long_it_waits(patient: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda _: error(429, headers={"Retry-After": "2"})
    answer = await patient.post({"model": "m", "input": "a"}, Prefer="wait=1")
    assert (answer.status, len(upstream.calls)) == (429, 1)


@pytest.mark.relays_refusals
async def test_without_patience_refusals_are_relayed(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = refusing(upstream, 1)
    assert (await client.embed("a")).status == 429
    assert len(upstream.calls) == 1


async def test_held_requests_are_merged_with_later_ones(patient: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    first = asyncio.create_task(patient.embed("a"))
    await gate.calls(1)
    rest = [asyncio.create_task(patient.embed(text)) for text in ("b", "c")]
    await waiting(patient, 3)
    upstream.reply = refusing(upstream, 2, headers={"retry-after-ms": "300"})
    gate.open()
    await first
    while await patient.metric("embedding_proxy_upstream_rate_limited_items") < 2:
        await asyncio.sleep(0)
    rest.append(asyncio.create_task(patient.embed("d")))
    assert [(await one).status for one in rest] == [200, 200, 200]
    assert sorted(upstream.calls[1].items) == ["b", "c"]  # was refused
    assert sorted(upstream.calls[2].items) == ["b", "c", "d"]


async def test_nothing_is_sent_for_a_client_that_left(patient: Client, upstream: ScriptedUpstream) -> None:
    refused = asyncio.Event()

    def reply(call: Call) -> web.Response:
        if call.items == ["gone"]:
            refused.set()
            return error(429, headers={"retry-after-ms": "300"})
        return upstream.embed(call)

    upstream.reply = reply
    request = asyncio.create_task(patient.embed("gone"))
    await refused.wait()
    request.cancel()
    answer = await patient.embed("other")
    assert answer.status == 200
    assert [call.items for call in upstream.calls].count(["gone"]) == 1


async def test_a_waiter_outlives_the_client_that_was_refused_first(patient: Client, upstream: ScriptedUpstream) -> None:
    refused = asyncio.Event()

    def reply(call: Call) -> web.Response:
        if len(upstream.calls) == 1:
            refused.set()
            return error(429, headers={"retry-after-ms": "300"})
        return upstream.embed(call)

    upstream.reply = reply
    first = asyncio.create_task(patient.embed("a"))
    await refused.wait()
    second = asyncio.create_task(patient.embed("a"))
    await waiting(patient, 1)
    first.cancel()
    assert (await second).status == 200


async def test_batch_larger_than_the_limit_is_cut_and_answered_whole(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(rate_limit_wait_s=WAIT_S)

    def reply(call: Call) -> web.Response:
        fields = {
            "x-ratelimit-limit-tokens": "40",
            "x-ratelimit-remaining-tokens": "40",
            "x-ratelimit-reset-tokens": "1ms",
        }
        if sum(map(len, call.items)) > 160:
            return error(429, headers=fields | SOON)
        answer = upstream.embed(call)
        answer.headers.update(fields)
        return answer

    upstream.reply = reply
    texts = [f"{number:040}" for number in range(20)]
    answer = await client.embed(texts)
    assert answer.status == 200
    assert answer.embeddings == [(await client.embed(text)).embeddings[0] for text in texts]


async def test_stopping_proxy_answers_what_it_holds(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(rate_limit_wait_s=WAIT_S)
    refused = asyncio.Event()

    def reply(call: Call) -> web.Response:
        refused.set()
        return error(429, headers={"Retry-After": "30"})

    upstream.reply = reply
    request = asyncio.create_task(client.embed("a"))
    await refused.wait()
    while not await client.metric("embedding_proxy_upstream_rate_limited_items"):
        await asyncio.sleep(0)
    client.proxy.fetcher.stop_holding(0.0)
    answer = await request
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


async def test_queries_go_before_batches(patient: Client, upstream: ScriptedUpstream) -> None:
    refused = asyncio.Event()

    def reply(call: Call) -> web.Response:
        if len(upstream.calls) == 1:
            refused.set()
            return error(429, headers={"retry-after-ms": "300"})
        return upstream.embed(call)

    upstream.reply = reply
    bulk = asyncio.create_task(patient.embed([f"bulk {n}" for n in range(50)]))
    await refused.wait()
    query = asyncio.create_task(patient.embed("query"))
    urgent = asyncio.create_task(patient.post({"model": "m", "input": "urgent"}, Priority="u=0"))
    assert [answer.status for answer in await asyncio.gather(bulk, query, urgent)] == [200, 200, 200]
    order = [text for call in upstream.calls[1:] for text in call.items]
    assert order[:3] == ["urgent", "query", "bulk 0"]
