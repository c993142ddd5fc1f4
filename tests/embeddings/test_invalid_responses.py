"""Responses of upstreams that must not be stored, and weights that change under one name."""

import gzip
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.direct_call import expected
from tests.support.redis_server import free_port
from tests.support.scripted import Call, ScriptedUpstream, error_reply


async def test_an_upstreams_shuffled_response_is_put_in_order(client: Client, upstream: ScriptedUpstream) -> None:
    def shuffled(call: Call) -> web.Response:
        answer = upstream.answer_to(call.json)
        return web.json_response(answer | {"data": answer["data"][::-1]})

    upstream.reply = shuffled
    for _ in range(2):
        assert (await client.embed(["a", "b", "c"])).vectors == expected(upstream, ["a", "b", "c"])


def without_index(answer: dict[str, Any]) -> None:
    del answer["data"][-1]["index"]


def repeat_index(answer: dict[str, Any]) -> None:
    answer["data"][0]["index"] = answer["data"][-1]["index"]


SPOILS: dict[str, Callable[[dict[str, Any]], object]] = {
    "one too few": lambda answer: answer["data"].pop(),
    "duplicate index": repeat_index,
    "missing index": without_index,
    "one longer": lambda answer: answer["data"][0]["embedding"].append(1.0),
    "error in 200": lambda answer: answer.update(error={"message": "no", "code": 429}),
    "null data": lambda answer: answer.update(data=None),
    "no object": lambda answer: answer["data"].append("vector"),
}
RAW_SPOILS = {
    "no json": b"<html>busy</html>",
    "empty": b"",
    "NaN": b'{"data":[{"index":0,"embedding":[NaN]},{"index":1,"embedding":[1.0]}]}',
    "cut": b'{"data":[{"index":0,"embedding":[1.0',
}


def spoiled_body(upstream: ScriptedUpstream, how: str, asked: bytes) -> bytes:
    """The response of an upstream with this fault to a request's body."""
    if how in RAW_SPOILS:
        return RAW_SPOILS[how]
    answer = upstream.answer_to(orjson.loads(asked))
    SPOILS[how](answer)
    return orjson.dumps(answer)


def spoil(upstream: ScriptedUpstream, how: str) -> None:
    upstream.reply = lambda call: web.Response(body=spoiled_body(upstream, how, call.body))


@pytest.mark.parametrize("how", [*SPOILS, *RAW_SPOILS])
@pytest.mark.relays_refusals
async def test_an_invalid_response_is_relayed_verbatim_and_never_stored(
    client: Client, upstream: ScriptedUpstream, how: str
) -> None:
    spoil(upstream, how)
    body = orjson.dumps({"model": "m", "input": ["a", "b"]})
    relayed = await client.post(body)
    assert (relayed.status, relayed.body) == (200, spoiled_body(upstream, how, body))
    upstream.reply = None
    good = await client.embed(["a", "b"])
    assert good.cache == "MISS"
    assert good.vectors == expected(upstream, ["a", "b"])


@pytest.mark.parametrize("how", [*SPOILS, *RAW_SPOILS])
@pytest.mark.relays_refusals
async def test_an_invalid_response_to_a_part_is_followed_by_the_whole_request_once(
    client: Client, upstream: ScriptedUpstream, how: str
) -> None:
    await client.embed("c")
    spoil(upstream, how)
    body = orjson.dumps({"model": "m", "input": ["a", "b", "c"]})
    relayed = await client.post(body)
    assert [call.json["input"] for call in upstream.calls[1:]] == [["a", "b"], ["a", "b", "c"]]
    assert relayed.body == spoiled_body(upstream, how, body)
    upstream.reply = None
    assert (await client.embed(["a", "b", "c"])).vectors == expected(upstream, ["a", "b", "c"])


async def test_dimensions_that_the_upstream_ignores_are_stored_as_asked(
    client: Client, upstream: ScriptedUpstream
) -> None:
    upstream.reply = lambda call: web.json_response(
        upstream.answer_to(call.json, data=[{"index": 0, "embedding": [0.5] * 16}])
    )
    for _ in range(2):
        answer = await client.embed("x", dimensions=256)
        assert len(answer.vectors[0]) == 16
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("given_status", [400, 401, 402, 403, 404, 413, 422, 424, 429, 500, 502, 503, 504, 524, 529])
@pytest.mark.relays_refusals
async def test_errors_are_relayed_to_the_byte(client: Client, upstream: ScriptedUpstream, given_status: int) -> None:
    body = b'{"error" : {"message":"no", "code":null}}\n'
    upstream.reply = error_reply(given_status, body, retry_after="3", retry_after_ms="2500", x_should_retry="false")
    answer = await client.embed("x")
    assert (answer.status, answer.body) == (given_status, body)
    assert [answer.headers[name] for name in ("retry-after", "retry-after-ms", "x-should-retry")] == [
        "3",
        "2500",
        "false",
    ]
    assert len(upstream.calls) == 1


@pytest.mark.relays_refusals
async def test_a_hit_and_a_rejected_miss_give_no_partial_response(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed("a")
    upstream.reply = error_reply(429, {"error": {"message": "slow down"}}, retry_after_ms="2500")
    answer = await client.embed(["a", "b"])
    assert (answer.status, answer.json) == (429, {"error": {"message": "slow down"}})
    assert answer.headers["retry-after-ms"] == "2500"
    assert (await client.embed("a")).cache == "HIT"


async def test_an_unreachable_upstream_is_a_502_in_openais_form(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    upstream.base_url = f"http://127.0.0.1:{free_port()}/v1"
    answer = await (await start_proxy()).embed("x")
    assert answer.status == 502
    assert answer.json["error"]["code"] == "upstream_unreachable"
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert "127.0.0.1" not in answer.json["error"]["message"]


async def test_a_connection_that_breaks_in_a_response_is_a_502(client: Client, upstream: ScriptedUpstream) -> None:
    async def cut(call: Call) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(call.request)
        await response.write(b'{"data": [')
        assert call.request.transport is not None
        call.request.transport.abort()
        return response

    upstream.reply = cut
    assert (await client.embed("x")).status == 502
    upstream.reply = None
    assert (await client.embed("x")).cache == "MISS"


async def test_an_unrequested_compressed_response_is_decoded(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda call: web.Response(
        body=gzip.compress(orjson.dumps(upstream.answer_to(call.json))), headers={"Content-Encoding": "gzip"}
    )
    miss = await client.embed("x", headers={"Accept-Encoding": "gzip, br"})
    assert "Content-Encoding" not in miss.headers
    assert miss.vectors == (await client.embed("x")).vectors == expected(upstream, ["x"])
    assert upstream.calls[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("coding", ["br", "gzip"])
async def test_a_response_that_cannot_be_decoded_is_relayed(
    client: Client, upstream: ScriptedUpstream, coding: str
) -> None:
    upstream.reply = lambda _: web.Response(body=b"\x1f\x8bnot really", headers={"Content-Encoding": coding})
    answer = await client.embed("x")
    assert (answer.body, answer.headers["Content-Encoding"]) == (b"\x1f\x8bnot really", coding)


async def test_after_an_alias_moved_all_items_are_fetched_again(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed(["a", "b"])

    def moved(call: Call) -> web.Response:
        asked = call.json | {"model": "m-2"}
        data = [{"index": i, "embedding": upstream.embedding(asked, item, 16)} for i, item in enumerate(call.items)]
        return upstream.embed(call, model="m-2", data=data)

    upstream.reply = moved
    answer = await client.embed(["a", "c"])
    assert answer.vectors == expected(upstream, ["a", "c"], model="m-2")
    assert (answer.json["model"], answer.cache) == ("m-2", "MISS")
    assert (await client.embed("a")).vectors == expected(upstream, ["a"], model="m-2")
    # b is still of the old weights; together with a it would be a mixture.
    both = await client.embed(["a", "b"])
    assert both.vectors == expected(upstream, ["a", "b"], model="m-2")
