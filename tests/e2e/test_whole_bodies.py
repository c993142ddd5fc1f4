"""Requests whose items depend on each other are cached as a whole."""

import asyncio
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.gate import Gate
from tests.support.in_flight import waiting
from tests.support.scripted import Call, ScriptedUpstream

WHOLES: list[dict[str, Any]] = [
    {"foo": 1}, {"drop_params": True}, {"timeout": 600}, {"metadata": {"a": "b"}}, {"keep_alive": "5m"},
    {"extra_body": {}}, {"late_chunking": True}, {"modality": ["text", "text"]}, {"input": ["x", ""]},
    {"input": ["x", [1, 2]]}, {"input": [{"text": "x"}, {"video": "data:video/mp4;base64,AA"}]},
]  # fmt: skip


@pytest.mark.parametrize("fields", WHOLES, ids=str)
async def test_same_body_is_a_hit(client: Client, upstream: ScriptedUpstream, fields: dict[str, Any]) -> None:
    body = {"model": "m", "input": ["x", "y"], **fields}
    miss = await client.post(body)
    hits = [await client.post(dict(reversed(body.items())) | {"user": "u"}), await client.post(body)]
    assert [answer.cache for answer in (miss, *hits)] == ["MISS", "HIT", "HIT"]
    assert all("detail=whole-body" in answer.headers["Cache-Status"] for answer in (miss, *hits))
    assert all(answer.embeddings == miss.embeddings for answer in hits)
    assert len(upstream.calls) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("stream", None), ("stream", False), ("encoding_format", None), ("user", None)]
)
async def test_null_and_default_values_equal_absent_fields(client: Client, name: str, value: object) -> None:
    await client.embed("x")
    answer = await client.post({"model": "m", "input": "x", name: value})
    assert (answer.cache, answer.headers["Cache-Status"]) == ("HIT", "embedding-proxy; hit")


async def test_dimensions_zero_is_cached(client: Client) -> None:
    assert [(await client.embed("x", dimensions=0)).cache for _ in range(2)] == ["MISS", "HIT"]


async def test_whole_body_and_items_have_separate_entries(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed(["x", "y"])
    assert (await client.embed(["x", "y"], foo=1)).cache == "MISS"
    assert (await client.embed(["x"], foo=1)).cache == "MISS"
    assert (await client.embed(["y", "x"], foo=1)).cache == "MISS"
    assert [call.items for call in upstream.calls] == [["x", "y"], ["x", "y"], ["x"], ["y", "x"]]


async def test_whole_body_is_sent_unchanged_and_never_partial(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    now_s = [1_000_000.0]
    client = await start_proxy(clock=lambda: now_s[0])
    body = b'{ "model":"m", "input": ["x","y"],  "foo": 1.0 }'
    await client.post(body)
    now_s[0] += 100
    assert (await client.post(body, Cache_Control="max-age=10")).cache == "MISS"
    assert [call.body for call in upstream.calls] == [body, body]


async def test_whole_body_is_never_merged_but_computed_once(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    bodies = [{"model": "m", "input": text, "foo": 1} for text in ("a", "b", "a", "c", "a")]
    requests = [asyncio.create_task(client.post(body)) for body in bodies]
    await waiting(client, 5)
    await gate.calls(3)
    gate.open()
    answers = await asyncio.gather(*requests)
    assert sorted(call.json["input"] for call in upstream.calls) == ["a", "b", "c"]
    assert answers[0].embeddings == answers[2].embeddings == answers[4].embeddings


async def test_no_cache_whole_bodies_are_sent_separately(client: Client, upstream: ScriptedUpstream) -> None:
    body = {"model": "m", "input": ["a", "b"], "foo": 1}
    answers = await asyncio.gather(*(client.post(body, Cache_Control="no-cache") for _ in range(3)))
    assert [answer.status for answer in answers] == [200] * 3
    assert [call.items for call in upstream.calls] == [["a", "b"]] * 3


async def test_unknown_field_that_changes_the_encoding_corrupts_no_vector(
    client: Client, upstream: ScriptedUpstream
) -> None:
    """As vLLM's `embed_dtype`: base64 of float16."""

    def half(call: Call) -> web.Response:
        is_base64 = call.json.get("encoding_format") == "base64"
        return web.json_response({"data": [{"index": 0, "embedding": "ADwAQABCAEQ=" if is_base64 else [1, 2, 3, 4]}]})

    upstream.reply = half
    for _ in range(2):
        assert (await client.embed("x", embed_dtype="float16", encoding_format="base64")).embeddings == ["ADwAQABCAEQ="]
        assert (await client.embed("x", embed_dtype="float16")).embeddings == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    "doubt",
    [{"input": ["x", ""]}, {"input": ["x", [1]]}, {"modality": ["text", "text"]}, {"model": None}, {"task": [1]}],
    ids=str,
)
async def test_unknown_field_is_keyed_in_an_invalid_request(
    client: Client, upstream: ScriptedUpstream, doubt: dict[str, Any]
) -> None:
    def half(call: Call) -> web.Response:
        embedding = "ADwAQABCAEQ=" if call.json.get("encoding_format") == "base64" else [1, 2, 3, 4]
        return web.json_response({"data": [{"index": i, "embedding": embedding} for i in range(2)]})

    upstream.reply = half
    body = {"model": "m", "input": ["x", "y"], "embed_dtype": "float16", **doubt}
    for _ in range(2):
        assert (await client.post(body | {"encoding_format": "base64"})).embeddings == ["ADwAQABCAEQ="] * 2
        assert (await client.post(body)).embeddings == [[1, 2, 3, 4]] * 2


async def test_base64_of_several_vectors_is_not_stored_as_one(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(provider="jina")

    def several(call: Call) -> web.Response:
        embedding = "AACAPwAAAEA=" if call.json.get("embedding_type") == "base64" else [[1.0], [2.0]]
        return web.json_response({"data": [{"index": 0, "embedding": embedding}]})

    upstream.reply = several
    body = {"model": "m", "input": ["x"], "return_multivector": True}
    assert (await client.post(body | {"embedding_type": "base64"})).embeddings == ["AACAPwAAAEA="]
    assert (await client.post(body)).embeddings == [[[1.0], [2.0]]]


async def test_floats_returned_for_base64_are_stored(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda _: web.json_response({"data": [{"index": 0, "embedding": [1.0, 2.0]}]})
    answers = [await client.embed("x", drop_params=True, encoding_format="base64") for _ in range(2)]
    assert [answer.cache for answer in answers] == ["MISS", "HIT"]
    assert [answer.vectors for answer in answers] == [[[1.0, 2.0]]] * 2


@pytest.mark.parametrize("name", ["model", "", "input"])
async def test_unknown_values_are_part_of_the_key(client: Client, upstream: ScriptedUpstream, name: str) -> None:
    upstream.reply = lambda call: web.json_response(
        {"data": [{"index": 0, "embedding": [1.0, *call.body]}], "model": "m"}
    )
    for value in (None, 1, 22, True, [True], {"name": "m"}, {"name": "n"}):
        body = orjson.dumps({"model": "m", "input": "x", "foo": 1, name: value})
        for cache in ("MISS", "HIT"):
            answer = await client.post(body)
            assert (answer.cache, answer.vectors) == (cache, [[1.0, *body]])
    absent = {key: value for key, value in {"model": "m", "input": "x", "foo": 1}.items() if key != name}
    assert (await client.post(absent)).cache == "MISS"


@pytest.mark.parametrize(
    "fields",
    [
        {"input": ["https://example.com/a.png", ""], "modality": "image"},
        {"input": ["https://example.com/a.png", ""], "input_kind": "image"},
        {"input": ["https://example.com/a.png"], "model": None, "modality": "image"},
        {"input": ["https://example.com/a.png"], "model": 1, "foo": 1},
    ],
    ids=str,
)
async def test_media_url_is_detected_in_an_invalid_request(client: Client, fields: dict[str, Any]) -> None:
    answers = [await client.post({"model": "m", **fields}) for _ in range(2)]
    assert [answer.cache for answer in answers] == ["BYPASS"] * 2
    assert all("detail=remote-media" in answer.headers["Cache-Status"] for answer in answers)


async def test_url_among_texts_is_a_text(client: Client) -> None:
    answers = [await client.embed(["https://example.com/a", ""]) for _ in range(2)]
    assert [answer.cache for answer in answers] == ["MISS", "HIT"]


@pytest.mark.parametrize(
    "fields",
    [
        {"cache": {"no-cache": True}}, {"caching": False}, {"no_cache": True}, {"useCache": False}, {"nocache": 1},
        {"bypassCache": True}, {"CACHE": "off"}, {"no-store": True}, {"noStore": True}, {"force_refresh": True},
        {"gateway": {"cacheTtl": 0}},
    ],
    ids=str,
)  # fmt: skip
async def test_upstream_cache_fields_cause_a_bypass(client: Client, fields: dict[str, Any]) -> None:
    answers = [await client.embed("x", **fields) for _ in range(2)]
    assert [answer.cache for answer in answers] == ["BYPASS"] * 2


async def test_response_in_another_encoding_is_relayed(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda _: web.json_response({"data": [{"index": 0, "embedding": "ADwAQABCAEQ="}]})
    for _ in range(2):
        answer = await client.embed("x", foo=1)
        assert (answer.cache, answer.embeddings) == ("MISS", ["ADwAQABCAEQ="])


async def test_response_with_another_item_count_is_relayed_not_stored(
    client: Client, upstream: ScriptedUpstream
) -> None:
    upstream.reply = lambda _: web.json_response({"data": [{"index": 0, "embedding": [1.0, 2.0]}]})
    for _ in range(2):
        answer = await client.embed(["x", [1]])
        assert (answer.cache, answer.embeddings) == ("MISS", [[1.0, 2.0]])


async def test_cache_control_applies_to_whole_bodies(client: Client, upstream: ScriptedUpstream) -> None:
    body = {"model": "m", "input": "x", "foo": 1}
    assert (await client.post(body, Cache_Control="only-if-cached")).status == 504
    assert (await client.post(body, Cache_Control="no-store")).cache == "MISS"
    assert (await client.post(body)).cache == "MISS"
    assert (await client.post(body, Cache_Control="only-if-cached")).cache == "HIT"


async def test_whole_bodies_are_counted_by_reason(client: Client) -> None:
    await client.embed("x", foo=1)
    assert await client.metric("embedding_proxy_whole_body_requests_total", reason="unknown-field") == 1
    assert await client.metric("embedding_proxy_bypasses_total") == 0


async def test_more_items_than_openai_allows_are_one_request(client: Client, upstream: ScriptedUpstream) -> None:
    texts = [f"text {i}" for i in range(2500)]
    miss, hit = await client.embed(texts), await client.embed(texts)
    assert (miss.cache, hit.cache, len(hit.embeddings)) == ("MISS", "HIT", 2500)
    assert [len(call.items) for call in upstream.calls] == [2500]


async def test_more_items_than_the_provider_allows_are_several_calls(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(provider="openai")
    texts = [f"text {i}" for i in range(2500)]
    assert len((await client.embed(texts)).embeddings) == 2500
    assert sorted(len(call.items) for call in upstream.calls) == [452, 2048]
