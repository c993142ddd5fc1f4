"""Requests that are relayed without caching: what they get, what is counted, and what they say of the credential."""

import gzip
import logging

import pytest
from aiohttp import web

from proxy.config.settings import BudgetSettings, UpstreamSetting
from proxy.ledger.spending import SpendingBudget
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.scripted import ScriptedUpstream, error_reply

STREAM = {"model": "m", "input": ["a", "b"], "stream": True}  # a reason to relay


async def items_by(client: Client, result: str) -> float:
    return await client.metric("embedding_proxy_items_total", result=result)


async def test_the_response_names_the_reason_and_is_not_stored(client: Client, upstream: ScriptedUpstream) -> None:
    for calls in (1, 2):
        response = await client.post(STREAM)
        assert (response.status, response.cache) == (200, "BYPASS")
        assert response.headers["Cache-Status"] == "embedding-proxy; fwd=bypass; detail=stream"
        assert response.headers["X-Cache-Saved-Tokens"] == "0"
        assert len(upstream.calls) == calls
        assert upstream.calls[-1].json == STREAM


async def test_the_cache_fields_of_another_proxy_behind_this_one_are_replaced(
    client: Client, upstream: ScriptedUpstream
) -> None:
    fields = {"X-Cache": "HIT", "X-Cache-Saved-Tokens": "9", "Cache-Status": "inner; hit"}
    upstream.reply = lambda _: web.Response(headers=fields)
    response = await client.post(STREAM)
    assert response.headers.getall("X-Cache") == ["BYPASS"]
    assert response.headers.getall("X-Cache-Saved-Tokens") == ["0"]
    assert response.headers.getall("Cache-Status") == ["inner; hit", "embedding-proxy; fwd=bypass; detail=stream"]


async def test_requests_are_counted_by_reason_and_items(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed("known")  # so that the model has counters of its own
    await client.post(STREAM)
    upstream.reply = lambda _: web.json_response({})
    await client.post(b"{")
    assert await client.metric("embedding_proxy_bypasses_total", reason="stream") == 1
    assert await client.metric("embedding_proxy_bypasses_total", reason="not-json") == 1
    assert await client.metric("embedding_proxy_items_total", result="bypass", model="m") == 2
    assert await items_by(client, "bypass") == 3  # what can't be read counts as one
    assert await client.metric("embedding_proxy_requests_total", outcome="bypass") == 2


async def test_a_client_that_accepts_only_cached_responses_gets_an_error_with_the_reason(
    client: Client, upstream: ScriptedUpstream
) -> None:
    response = await client.post(STREAM, Cache_Control="only-if-cached")
    assert (response.status, response.json["error"]["code"]) == (504, "not_cached")
    assert response.json["error"]["message"] == "The request can't be cached (stream)."
    assert not upstream.calls
    assert await client.metric("embedding_proxy_bypasses_total", reason="stream") == 0


async def test_each_reason_is_logged_once_with_the_field(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        await client.post({"model": "m", "input": "a", "tags": ["x"]})
        await client.post(STREAM)
    said = [line for line in caplog.messages if "relayed without caching" in line]
    assert said == [
        "requests to scripted are relayed without caching: stream 'stream' (logged once; counted in metrics)"
    ]
    assert all(record.levelno == logging.WARNING for record in caplog.records if record.getMessage() in said)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_credential_is_not_served_from_the_cache_before_it_was_accepted_again(
    client: Client, upstream: ScriptedUpstream, status: int
) -> None:
    await client.embed("a")
    assert (await client.embed("a")).cache == "HIT"
    upstream.reply = error_reply(status, {"error": {"message": "refused"}})
    relayed = await client.post(STREAM)
    assert (relayed.status, relayed.cache) == (status, "BYPASS")
    calls = len(upstream.calls)
    assert (await client.embed("a")).status == status
    assert len(upstream.calls) > calls


@pytest.mark.relays_refusals
@pytest.mark.parametrize("status", [404, 429, 500])
async def test_other_errors_say_nothing_of_the_credential(
    client: Client, upstream: ScriptedUpstream, status: int
) -> None:
    await client.embed("a")
    upstream.reply = error_reply(status, {"error": {"message": "refused"}})
    assert (await client.post(STREAM)).status == status
    assert (await client.embed("a")).cache == "HIT"


async def test_a_client_is_named_in_metrics_once_the_upstream_has_accepted_its_credential(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(client_labels_key=b"5" * 32)
    upstream.reply = error_reply(401, {"error": {"message": "refused"}})
    await client.post(STREAM)
    upstream.reply = None
    counted = "embedding_proxy_client_bypasses_total"
    assert await client.metric(counted, client="other", reason="stream") == 1
    await client.post(STREAM)
    assert await client.metric(counted, client="other", reason="stream") == 1
    assert await client.metric(counted, reason="stream") == 2
    assert await client.metric("embedding_proxy_client_items_total", result="bypass") == 4


async def test_a_client_without_budget_is_refused_before_the_upstream_is_called(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    budget = SpendingBudget(name="daily", tokens=1)
    client = await start_proxy(
        budgets=BudgetSettings(budgets=(budget,), fails_open=True), clock=lambda: 1_800_000_000.0
    )
    await client.embed("spends it")
    calls = len(upstream.calls)
    assert (await client.post(STREAM)).status == 429
    assert len(upstream.calls) == calls


async def test_the_target_and_the_query_reach_the_upstream(client: Client, upstream: ScriptedUpstream) -> None:
    await client.post(STREAM, target="/v1/embeddings?api-version=3")
    assert upstream.calls[-1].target == "/v1/embeddings?api-version=3"


@pytest.mark.parametrize("is_compressed", [False, True])
async def test_a_refusal_of_the_proxys_own_key_inside_a_success_is_not_relayed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, is_compressed: bool
) -> None:
    setting = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-own")
    client = await start_proxy(upstream=setting)
    refusal = b'{"error":{"code":401,"message":"bad key sk-own"}}'
    fields = {"Content-Encoding": "gzip"} if is_compressed else {}
    upstream.reply = lambda _: web.Response(body=gzip.compress(refusal) if is_compressed else refusal, headers=fields)
    response = await client.post(STREAM, Accept_Encoding="br")
    assert (response.status, response.json["error"]["code"]) == (502, "upstream_key_refused")
    assert upstream.calls[-1].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("size", [100, 200_000])
async def test_a_success_under_the_proxys_own_key_is_relayed_to_the_byte(
    start_proxy: StartProxy, upstream: ScriptedUpstream, size: int
) -> None:
    setting = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-own")
    client = await start_proxy(upstream=setting)
    body = b'{"data":"%s"}' % (b"x" * size)
    for content_type in ("application/json", "text/event-stream"):
        upstream.reply = lambda _, given=content_type: web.Response(body=body, headers={"Content-Type": given})
        response = await client.post(STREAM)
        assert (response.status, response.body) == (200, body)
