"""One vector that can't be stored does not keep the others of its batch from the cache."""

from typing import Any

import pytest
from aiohttp import web

from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.scripted import Call, ScriptedUpstream

TEN = [f"text {i}" for i in range(9)] + ["odd"]
ODD: list[Any] = [None, [0.0, 0.0], [], "AAAA", "?!", [[1.0, 2.0]], [1e300, 1.0], {"values": [1.0]}]


def with_odd(odd: Any, *, alone: Any = ...) -> Any:
    def reply(call: Call) -> web.Response:
        its = odd if len(call.items) > 1 or alone is ... else alone
        data = [
            {"object": "embedding", "index": i, "embedding": its if text == "odd" else [len(text), i + 1.0]}
            for i, text in enumerate(call.items)
        ]
        usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
        return web.json_response({"object": "list", "data": data, "model": "m", "usage": usage})

    return reply


def sent(upstream: ScriptedUpstream) -> list[list[str]]:
    return [call.items for call in upstream.calls]


@pytest.mark.parametrize("odd", ODD, ids=repr)
async def test_batch_with_an_unusable_vector_stores_the_others(
    client: Client, upstream: ScriptedUpstream, odd: Any
) -> None:
    reply = upstream.reply = with_odd(odd)
    first = await client.embed(TEN)
    assert (first.cache, first.embeddings[-1]) == ("MISS", odd)
    assert first.body == reply(upstream.calls[0]).body
    again = await client.embed(TEN)
    assert (again.cache, again.embeddings) == ("PARTIAL", first.embeddings)
    assert (await client.embed(TEN[:9])).cache == "HIT"
    assert sent(upstream) == [TEN, ["odd"]]  # eleven items are paid for, and not twenty or twenty-one


async def test_unusable_vector_in_a_part_is_retried_alone(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = with_odd(None, alone=[7.0, 7.0])
    await client.embed("cached")
    answer = await client.embed(["cached", "new", "odd"])
    assert answer.embeddings == [[6, 1.0], [3, 1.0], [7.0, 7.0]]
    assert sent(upstream) == [["cached"], ["new", "odd"], ["odd"]]
    assert (await client.embed("odd")).cache == "HIT"


async def test_extra_item_fields_are_relayed_and_not_stored(client: Client, upstream: ScriptedUpstream) -> None:
    def sparse(call: Call) -> web.Response:
        answer = upstream.answer_to(call.json)
        for datum in answer["data"]:
            datum["sparse_weights"] = {"7": 0.5}
        return web.json_response(answer)

    await client.embed("b")
    upstream.reply = sparse
    for given in (["a"], ["a", "b"]):
        answer = await client.embed(given)
        assert all(datum["sparse_weights"] == {"7": 0.5} for datum in answer.json["data"])
        assert len(answer.json["data"]) == len(given)
    upstream.reply = None
    assert (await client.embed("a")).cache == "MISS"


async def test_relayed_unusable_vectors_count_as_billed(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = with_odd(None)
    await client.embed(TEN)
    assert await client.metric("embedding_proxy_requests_total", outcome="miss", status="200", model="m") == 1
    assert await client.metric("embedding_proxy_tokens_total", kind="billed", model="m") == 10
    assert await client.metric("embedding_proxy_items_total", result="upstream", model="m") == 10
    await client.embed(TEN)
    assert await client.metric("embedding_proxy_requests_total", outcome="partial", status="200", model="m") == 1
    assert await client.metric("embedding_proxy_items_total", result="upstream", model="m") == 11


async def test_unusable_vectors_in_a_part_are_retried_separately(client: Client, upstream: ScriptedUpstream) -> None:
    def reply(call: Call) -> web.Response:
        data = [
            {"index": i, "embedding": None if text.startswith("odd") else [len(text), 1.0]}
            for i, text in enumerate(call.items)
        ]
        return web.json_response({"data": data, "model": "m"})

    upstream.reply = reply
    await client.embed("cached")
    answer = await client.embed(["cached", "new", "odd 1", "odd 2", "odd 3"])
    assert answer.embeddings == [[6, 1.0], [3, 1.0], None, None, None]
    assert sent(upstream)[1] == ["new", "odd 1", "odd 2", "odd 3"]
    assert sorted(sent(upstream)[2:]) == [["odd 1"], ["odd 2"], ["odd 3"]]


@pytest.mark.parametrize("given", ["odd", ["odd"], ["odd", "a text", "another one"]], ids=str)
async def test_unusable_vector_in_a_validation_probe_is_billed_once(
    start_proxy: StartProxy, upstream: ScriptedUpstream, given: Any
) -> None:
    client = await start_proxy(shares_all=True)
    upstream.reply = with_odd(None)
    answer = await client.embed(given)
    assert answer.embeddings[0] is None
    assert sum(text == "odd" for items in sent(upstream) for text in items) == 1
    assert await client.metric("embedding_proxy_validations_total", result="confirmed") == 1
    if len(answer.embeddings) > 1:  # and what came with it is stored
        assert (await client.embed(given[1:])).cache == "HIT"


async def test_unusable_vector_in_a_split_request_is_not_sent_as_one_call(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(max_batch_items=4)
    upstream.reply = with_odd(None)
    answer = await client.embed(TEN)
    assert [embedding is None for embedding in answer.embeddings] == [False] * 9 + [True]
    assert sorted(map(len, sent(upstream))) == [1, 2, 4, 4]
