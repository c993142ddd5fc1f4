"""Twenty-five things that a naive cache in front of an embeddings API gets wrong, end to end."""

import asyncio
import gzip
import json
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.conftest import StartProxy
from tests.support.client import Client, raw
from tests.support.scripted import Call, ScriptedUpstream, error_reply


def sent(upstream: ScriptedUpstream) -> list[list[Any]]:
    return [call.items for call in upstream.calls]


async def test_case_01_floats_returned_for_base64(client: Client, upstream: ScriptedUpstream) -> None:
    # openai-node decodes whatever comes as base64: a list becomes zeros, without an error.
    def floats(call: Call) -> web.Response:
        return web.json_response(upstream.answer_to(call.json | {"encoding_format": "float"}))

    upstream.reply = floats
    for answer in (
        await client.embed("x", encoding_format="base64"),
        await client.embed("x", encoding_format="base64"),
    ):
        assert isinstance(answer.embeddings[0], str)
        assert answer.vectors[0] == pytest.approx((await client.embed("x")).vectors[0])


async def test_case_02_base64_entry_requested_as_float_and_default(client: Client, upstream: ScriptedUpstream) -> None:
    encoded = await client.embed("x", encoding_format="base64")
    named, unnamed = await client.embed("x", encoding_format="float"), await client.embed("x")
    assert [answer.cache for answer in (encoded, named, unnamed)] == ["MISS", "HIT", "HIT"]
    assert encoded.vectors == named.vectors == unnamed.vectors
    assert isinstance(named.embeddings[0], list)
    assert named.body == unnamed.body


async def test_case_03_duplicate_items_around_a_cached_one(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed("b")
    answer = await client.embed(["a", "b", "a"])
    assert sent(upstream) == [["b"], ["a"]]
    assert [datum["index"] for datum in answer.json["data"]] == [0, 1, 2]
    assert answer.embeddings[0] == answer.embeddings[2] != answer.embeddings[1]


async def test_case_04_response_data_out_of_order(client: Client, upstream: ScriptedUpstream) -> None:
    straight = await client.post({"model": "m", "input": ["a", "b", "c"]}, key="Bearer other")
    upstream.reply = lambda call: upstream.embed(call, data=upstream.answer_to(call.json)["data"][::-1])
    for answer in (await client.embed(["a", "b", "c"]), await client.embed(["a", "b", "c"])):
        assert answer.embeddings == straight.embeddings
        assert [datum["index"] for datum in answer.json["data"]] == [0, 1, 2]


async def test_case_05_three_items_requested_and_one_returned(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda call: upstream.embed(call, data=upstream.answer_to(call.json)["data"][:1])
    answer = await client.embed(["a", "b", "c"])
    assert len(answer.embeddings) == 1  # as the upstream would have it, had it been asked directly
    upstream.reply = None
    assert (await client.embed(["a", "b", "c"])).cache == "MISS"


@pytest.mark.parametrize("indices", [[0, 0], [1, 2], [0, None], [None, 2], [0, "1"], [0, 1.0], [True, 0]], ids=str)
async def test_case_06_duplicate_or_missing_indices(
    client: Client, upstream: ScriptedUpstream, indices: list[Any]
) -> None:
    def reply(call: Call) -> web.Response:
        data = upstream.answer_to(call.json)["data"]
        for datum, index in zip(data, indices, strict=True):
            datum["index"] = index
        return upstream.embed(call, data=data)

    upstream.reply = reply
    await client.embed(["a", "b"])
    upstream.reply = None
    assert (await client.embed(["a", "b"])).cache == "MISS"


@pytest.mark.parametrize("body", [{"error": {"message": "no", "code": 502}}, {"object": "list", "data": None}, {}])
async def test_case_07_a_200_that_is_an_error(client: Client, upstream: ScriptedUpstream, body: dict[str, Any]) -> None:
    upstream.reply = error_reply(200, body)
    assert (await client.embed("x")).json == body
    upstream.reply = None
    assert (await client.embed("x")).cache == "MISS"


async def test_case_08_late_chunking(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    for provider in ("generic", "jina", "openai"):
        client, caches = await start_proxy(provider=provider), []
        for _ in range(2):
            answer = await client.embed(["a", "b"], late_chunking=True)
            caches.append(answer.cache)
            assert "detail=whole-body" in answer.headers["Cache-Status"]
        assert caches == ["MISS", "HIT"]
        assert (await client.embed(["a"], late_chunking=True)).cache == "MISS"  # its vector depends on the others
        assert (await client.embed(["a", "b"])).cache == "MISS"


async def test_case_09_a_list_of_numbers_is_one_item(client: Client, upstream: ScriptedUpstream) -> None:
    answer = await client.embed([1, 2, 3])
    assert len(answer.embeddings) == 1
    assert (await client.embed([[1, 2, 3], [1], [2]])).embeddings[0] == answer.embeddings[0]
    assert sent(upstream) == [[[1, 2, 3]], [[1], [2]]]


async def test_case_10_text_token_and_list_of_one_text(client: Client, upstream: ScriptedUpstream) -> None:
    assert [(await client.embed(given)).cache for given in ("1", [1], ["1"])] == ["MISS", "MISS", "HIT"]


async def test_case_11_item_boundaries(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed(["ab", "c"])
    answer = await client.embed(["a", "bc"])
    assert answer.cache == "MISS"
    assert sent(upstream) == [["ab", "c"], ["a", "bc"]]


async def test_case_12_texts_that_look_identical(client: Client, upstream: ScriptedUpstream) -> None:
    alike = [" x", "x", "x\n", "X", "x\u0000", "caf\u00e9", "cafe\u0301", "\u212b", "\u00c5"]
    assert [(await client.embed(text)).cache for text in alike] == ["MISS"] * len(alike)
    assert [(await client.embed(text)).cache for text in alike] == ["HIT"] * len(alike)


async def test_case_13_equivalent_spellings_of_a_request(client: Client, upstream: ScriptedUpstream) -> None:
    bodies = [
        '{"model":"m","input":"caf\u00e9","dimensions":8}',
        '{"dimensions": 8, "input": "caf\\u00e9", "model": "m"}',
        ' {"input" :["caf\\u00E9"],\n"model":"\\u006d","dimensions":8 } ',
    ]
    assert [(await client.post(body.encode())).cache for body in bodies] == ["MISS", "HIT", "HIT"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","input":"\\ud800"}',
        b'{"model":"m","input":"\xff"}',
        b'{"model":"m","input":"a","input":"b"}',
        b'{"model":"m","model":"n","input":"a"}',
        b'{"model":"m","input":"a","dimensions":NaN}',
    ],
)
async def test_case_14_json_that_parsers_read_differently(
    client: Client, upstream: ScriptedUpstream, body: bytes
) -> None:
    upstream.reply = error_reply(400, b'{"error":"as the upstream thinks"}')
    for _ in range(2):
        answer = await client.post(body)
        assert (answer.cache, answer.body) == ("BYPASS", b'{"error":"as the upstream thinks"}')
    assert [call.body for call in upstream.calls] == [body, body]


async def test_case_15_dimensions_given_absent_native_and_null(client: Client, upstream: ScriptedUpstream) -> None:
    kinds: list[dict[str, Any]] = [{"dimensions": 8}, {}, {"dimensions": upstream.dimensions}, {"dimensions": None}]
    assert [(await client.embed("x", **fields)).cache for fields in kinds] == ["MISS"] * 4
    answers = [await client.embed("x", **fields) for fields in kinds]
    assert [answer.cache for answer in answers] == ["HIT"] * 4
    assert [len(answer.vectors[0]) for answer in answers] == [8, 16, 16, 16]


async def test_case_16_dimensions_that_the_upstream_ignores(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda call: web.json_response(upstream.answer_to(call.json | {"dimensions": 16}))
    answers = [await client.embed("x", dimensions=8) for _ in range(2)]
    assert [len(answer.vectors[0]) for answer in answers] == [16, 16]
    assert [answer.cache for answer in answers] == ["MISS", "HIT"]
    assert (await client.embed("x", dimensions=16)).cache == "MISS"  # stored under what was asked


async def test_case_17_two_deployments_and_one_body(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(provider="azure")
    targets = [f"/openai/deployments/{name}/embeddings?api-version=2024-10-21" for name in ("a", "b")]
    upstream.reply = lambda call: web.json_response(
        upstream.answer_to(call.json | {"model": call.target.split("/")[3]}, model="text-embedding-3-small")
    )
    first = [await client.post({"input": "x"}, target=target, api_key="k") for target in targets]
    again = [await client.post({"input": "x"}, target=target, api_key="k") for target in targets]
    assert [answer.cache for answer in first + again] == ["MISS", "MISS", "HIT", "HIT"]
    assert first[0].embeddings == again[0].embeddings != again[1].embeddings == first[1].embeddings
    assert [call.target for call in upstream.calls] == targets


async def test_case_18_query_and_passage(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(provider="nvidia")
    asked: list[dict[str, Any]] = [
        {"model": "nv-embed-query"},
        {"model": "nv-embed-passage"},
        {"model": "nv-embed", "input_type": "query"},
        {"model": "nv-embed", "input_type": "passage"},
        {"model": "nv-embed"},
    ]
    assert [(await client.embed("x", **fields)).cache for fields in asked] == ["MISS"] * 5
    assert [(await client.embed("x", **fields)).cache for fields in asked] == ["HIT"] * 5


async def test_case_19_unknown_field_with_a_positional_list(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(provider="nvidia")
    await client.embed("a")
    for fields in ({"foo": 1}, {"modality": ["text", "image"]}):
        assert [(await client.embed(["a", "b"], **fields)).cache for _ in range(2)] == ["MISS", "HIT"]
    assert sent(upstream)[1:] == [["a", "b"]] * 2


@pytest.mark.relays_refusals
async def test_case_20_hit_and_miss_over_the_item_limit(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed("a")
    upstream.reply = error_reply(
        429, b'{"error":{"message":"slow down"}}', retry_after_ms="1500", x_should_retry="true"
    )
    answer = await client.embed(["a", "b"])
    assert (answer.status, answer.body) == (429, b'{"error":{"message":"slow down"}}')
    assert (answer.headers["retry-after-ms"], answer.headers["x-should-retry"]) == ("1500", "true")
    upstream.reply = None
    assert (await client.embed(["a", "b"])).cache == "PARTIAL"


async def test_case_21_the_empty_text(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed("a")
    refusal = b'{"error":{"message":"\'$.input\' is invalid."}}'
    upstream.reply = error_reply(400, refusal)
    for given in ("", ["a", ""]):
        answer = await client.embed(given)
        assert (answer.status, answer.body, answer.cache) == (400, refusal, "MISS")
    assert sent(upstream)[1:] == [[""], ["a", ""]]


async def test_case_22_cached_item_requested_with_another_key(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed("a")
    upstream.reply = error_reply(401, b'{"error":{"message":"Incorrect API key"}}')
    for key in ("Bearer of-another-tenant", "Bearer revoked", None):
        answer = await client.post({"model": "m", "input": "a"}, key=key)
        assert (answer.status, answer.body) == (401, b'{"error":{"message":"Incorrect API key"}}')


async def test_case_23_fifty_concurrent_requests_and_the_first_disconnects(
    client: Client, upstream: ScriptedUpstream
) -> None:
    gate, arrived = asyncio.Event(), asyncio.Event()

    async def held(call: Call) -> web.Response:
        arrived.set()
        await gate.wait()
        return upstream.embed(call)

    upstream.reply = held
    leader = asyncio.create_task(client.embed("x"))
    await arrived.wait()
    others = [asyncio.create_task(client.embed("x")) for _ in range(49)]
    while await client.metric("embedding_proxy_requests_in_flight") < 50:
        await asyncio.sleep(0)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    gate.set()
    answers = await asyncio.gather(*others)
    assert {answer.status for answer in answers} == {200}
    assert len({orjson.dumps(answer.embeddings) for answer in answers}) == 1
    assert sent(upstream) == [["x"]]


async def test_case_24_compressed_chunked_and_unusual_requests(client: Client, upstream: ScriptedUpstream) -> None:
    body = b'{"model":"m","input":"x"}'
    squeezed = gzip.compress(body)
    upstream.reply = lambda call: web.json_response(upstream.answer_to({"model": "m", "input": "x"}))
    assert (await client.post(squeezed, Content_Encoding="gzip")).cache == "MISS"
    assert (upstream.calls[-1].body, "Content-Encoding" in upstream.calls[-1].headers) == (body, False)
    assert (await client.post(squeezed, Content_Encoding="gzip")).cache == "HIT"
    assert (await client.post(squeezed, Content_Encoding="zstd")).cache == "BYPASS"
    assert (upstream.calls[-1].body, upstream.calls[-1].headers["Content-Encoding"]) == (squeezed, "zstd")

    def squeeze(call: Call) -> web.Response:
        answer = gzip.compress(orjson.dumps(upstream.answer_to(call.json)))
        return web.Response(body=answer, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})

    upstream.reply = squeeze
    miss, hit = await client.embed("y"), await client.embed("y")
    assert ("Content-Encoding" in miss.headers, miss.cache, hit.cache) == (False, "MISS", "HIT")
    assert miss.embeddings == hit.embeddings

    upstream.reply = None
    tokens = [[n] * 400 for n in range(1000, 2000)]
    assert len(json.dumps(tokens)) > 2_300_000
    assert [(await client.embed(tokens)).cache for _ in range(2)] == ["MISS", "HIT"]

    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nAuthorization: Bearer sk-test"
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA"
    for extra in (b"Expect: 100-continue", upgrade):
        answer = await raw(
            client,
            head + b"\r\nContent-Length: %d\r\n%b\r\n\r\n%b" % (len(body), extra, body),
            end=b"}}",
        )
        assert b"HTTP/1.1 200 OK" in answer
        assert b"X-Cache: HIT" in answer


@pytest.mark.parametrize("numbers", [[0.1, 1 / 3, -2.5e-9], [-128, 0, 127], [1, 2, 300]], ids=str)
async def test_case_25_moving_alias_and_numbers_beyond_float32(
    client: Client, upstream: ScriptedUpstream, numbers: list[Any]
) -> None:
    def weights(model: str) -> Any:
        def reply(call: Call) -> web.Response:
            data = [{"object": "embedding", "index": i, "embedding": numbers} for i, _ in enumerate(call.items)]
            return upstream.embed(call, data=data, model=model)

        return reply

    upstream.reply = weights("m-2025")
    answers = [await client.embed("a"), await client.embed("a")]
    assert [answer.embeddings for answer in answers] == [[numbers]] * 2
    upstream.reply = weights("m-2026")
    moved = await client.embed(["a", "b"])
    assert sent(upstream)[1:] == [["b"], ["a", "b"]]
    assert moved.json["model"] == "m-2026"
    again = await client.embed(["b", "a"])
    assert (again.cache, again.json["model"]) == ("HIT", "m-2026")
