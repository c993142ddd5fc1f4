"""The cached route end to end: a real client, a real proxy, a real upstream."""

import asyncio
import gzip
import itertools
import zlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from aiohttp import ClientSession, web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.app import running
from proxy.config.settings import StoreSetting, UpstreamSetting
from tests.conftest import StartProxy
from tests.support.client import KEY, Client, UpstreamResponse, raw
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted import Call, ScriptedUpstream, error_reply, vector
from tests.support.settings import settings_for


def expected(
    upstream: ScriptedUpstream, items: list[Any], model: str = "m", dimensions: int | None = None
) -> list[list[float]]:
    """What a direct call with `encoding_format: float` would have parsed to."""
    asked = {"model": model}
    return [list(upstream.embedding(asked, item, dimensions or upstream.dimensions)) for item in items]  # type: ignore[arg-type]


# --- hits, misses and what is in between


async def test_a_miss_then_a_hit_with_the_same_bytes(client: Client, upstream: ScriptedUpstream) -> None:
    miss = await client.embed("hello")
    hit = await client.embed("hello")
    assert (miss.cache, hit.cache) == ("MISS", "HIT")
    assert miss.vectors == hit.vectors == expected(upstream, ["hello"])
    assert miss.body.split(b'"usage"')[0] == hit.body.split(b'"usage"')[0]
    assert len(upstream.calls) == 1


async def test_only_the_missing_items_go_up_in_one_call(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed(["b"])
    answer = await client.embed(["a", "b", "a", "c"])
    assert upstream.calls[-1].json["input"] == ["a", "c"]
    assert answer.cache == "PARTIAL"
    assert answer.vectors == expected(upstream, ["a", "b", "a", "c"])
    assert [datum["index"] for datum in answer.json["data"]] == [0, 1, 2, 3]


async def test_a_repeated_item_goes_up_once(client: Client, upstream: ScriptedUpstream) -> None:
    answer = await client.embed(["x", "x", "x"])
    assert upstream.calls[-1].json["input"] == ["x"]
    assert answer.vectors == expected(upstream, ["x"] * 3)
    assert answer.headers["X-Cache-Saved-Tokens"] == "2"


async def test_a_request_that_is_all_misses_arrives_upstream_to_the_byte(
    client: Client, upstream: ScriptedUpstream
) -> None:
    body = b'{ "input" : ["a", "\\u00e9"],\n "user":"u", "model" : "m" }'
    assert (await client.post(body)).cache == "MISS"
    assert upstream.calls[-1].body == body
    assert upstream.calls[-1].headers["Authorization"] == "Bearer sk-test"


@pytest.mark.parametrize("floats", ["shortest", "widened", "wide"])
@pytest.mark.parametrize("first", ["float", "base64"])
async def test_one_entry_serves_every_encoding(
    client: Client, upstream: ScriptedUpstream, floats: str, first: str
) -> None:
    upstream.floats = floats
    await client.embed("x", encoding_format=first)
    as_floats = await client.embed("x", encoding_format="float")
    absent = await client.embed("x")
    as_base64 = await client.embed("x", encoding_format="base64")
    assert len(upstream.calls) == 1
    assert isinstance(as_base64.embeddings[0], str)
    assert as_base64.vectors == [vector("m", "x", 16).tolist()]
    assert as_floats.vectors == absent.vectors
    # Through base64 only the float32 itself is known, and widened is how it is written.
    written = expected(upstream, ["x"]) if first == "float" else [vector("m", "x", 16).astype(float).tolist()]
    assert as_floats.vectors == written


async def test_base64_is_served_from_an_upstream_that_responds_with_floats(
    client: Client, upstream: ScriptedUpstream
) -> None:
    upstream.reply = lambda call: web.json_response(
        upstream.answer_to(call.json, data=[{"index": 0, "embedding": vector("m", "x", 16).astype(float).tolist()}])
    )
    answer = await client.embed("x", encoding_format="base64")
    assert isinstance(answer.embeddings[0], str)
    assert answer.vectors == [vector("m", "x", 16).tolist()]


async def test_integers_stay_integers(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda call: web.json_response(
        upstream.answer_to(call.json, data=[{"index": 0, "embedding": [-128, 0, 127]}])
    )
    miss, hit = await client.embed("x"), await client.embed("x")
    assert miss.embeddings == hit.embeddings == [[-128, 0, 127]]
    assert b"[-128,0,127]" in hit.body


@pytest.mark.parametrize(
    "given_input",
    [
        "x", ["x", "y"], [1, 2, 3], [[1], [2, 3]], ["1"], [1],
        [{"content": [{"type": "text", "text": "x"}]}],
        [{"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}],
    ],
    ids=str,
)  # fmt: skip
async def test_every_input_form_is_cached(
    start_proxy: StartProxy, upstream: ScriptedUpstream, given_input: Any
) -> None:
    client = await start_proxy(provider="openrouter")
    miss, hit = await client.embed(given_input), await client.embed(given_input)
    assert (miss.cache, hit.cache) == ("MISS", "HIT")
    assert miss.vectors == hit.vectors
    assert len(upstream.calls) == 1


async def test_a_text_a_token_and_a_list_of_either_are_not_mixed_up(client: Client, upstream: ScriptedUpstream) -> None:
    answers = [await client.embed(given_input) for given_input in ("1", [1], ["1"], [[1]])]
    assert [answer.cache for answer in answers] == ["MISS", "MISS", "HIT", "HIT"]
    assert answers[0].vectors == answers[2].vectors != answers[1].vectors == answers[3].vectors


async def test_dimensions_are_part_of_the_identity(client: Client) -> None:
    await client.embed("x")
    for dimensions in (4, 8):
        answer = await client.embed("x", dimensions=dimensions)
        assert (answer.cache, len(answer.vectors[0])) == ("MISS", dimensions)


class Stage:
    """An upstream and a proxy that outlive a test's examples; each example takes a model of its own."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.run = runner.run
        self.models = map(str, itertools.count())
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        self.upstream = await self._stack.enter_async_context(ScriptedUpstream().serving())
        session = await self._stack.enter_async_context(ClientSession(auto_decompress=False))
        proxy = await self._stack.enter_async_context(running(settings_for(self.upstream)))
        self.client = Client(session, proxy)

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with asyncio.Runner(debug=True) as runner:
        stage = Stage(runner)
        runner.run(stage.open())
        yield stage
        runner.run(stage.close())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=6), st.sampled_from(["float", "base64"])
        ),
        min_size=1,
        max_size=4,
    )
)
def test_batched_or_not_is_the_same(stage: Stage, requests: list[tuple[list[str], str]]) -> None:
    """However items are put into requests, each gets the vector it would have had alone, and goes up once."""
    model = next(stage.models)
    stage.upstream.calls.clear()
    for texts, encoding in requests:
        answer = stage.run(stage.client.embed(texts, model=model, encoding_format=encoding))
        assert [np.array(numbers, np.float32).tolist() for numbers in answer.vectors] == [
            vector(model, text, 16).tolist() for text in texts
        ]
    assert set(stage.upstream.items.values()) == {1}


# --- what is said with it


async def test_usage_is_what_was_billed_and_headers_say_what_was_saved(client: Client) -> None:
    miss = await client.embed(["abc", "de"])
    partial = await client.embed(["abc", "f", "f"])
    hit = await client.embed(["de", "f"])
    usages = [answer.json["usage"] for answer in (miss, partial, hit)]
    assert usages == [
        {"prompt_tokens": 5, "total_tokens": 5},
        {"prompt_tokens": 1, "total_tokens": 1},
        {"prompt_tokens": 0, "total_tokens": 0},
    ]
    assert [answer.headers["X-Cache-Saved-Tokens"] for answer in (miss, partial, hit)] == ["0", "4", "3"]
    assert [answer.headers["Cache-Status"] for answer in (miss, partial, hit)] == [
        "embedding-proxy; fwd=miss; fwd-status=200; stored",
        "embedding-proxy; fwd=partial; fwd-status=200; stored",
        "embedding-proxy; hit",
    ]


async def test_full_usage_is_what_it_would_have_cost(start_proxy: StartProxy) -> None:
    client = await start_proxy(reports_full_usage=True)
    for _ in range(2):
        answer = await client.embed(["abc", "de", "abc"])
        assert answer.json["usage"] == {"prompt_tokens": 8, "total_tokens": 8}


async def test_a_response_has_the_fields_that_openai_documents_even_if_the_upstream_omits_them(
    client: Client, upstream: ScriptedUpstream
) -> None:
    upstream.reply = lambda call: web.json_response({"data": [{"embedding": [0.5, 1.5]}]})
    for _ in range(2):
        assert (await client.embed("x")).json == {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 1.5]}],
            "model": "m",
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }


async def test_the_upstreams_own_headers_reach_the_client_of_a_miss(client: Client) -> None:
    answer = await client.embed("x")
    assert answer.headers["x-ratelimit-remaining-requests"] == "7"
    assert answer.headers.getall("Content-Type") == ["application/json"]
    assert int(answer.headers["Content-Length"]) == len(answer.body)


async def test_extra_usage_of_the_upstream_is_kept(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda call: upstream.embed(call, usage={"prompt_tokens": 1, "total_tokens": 1, "cost": 0.5})
    assert (await client.embed("x")).json["usage"]["cost"] == 0.5


# --- answers that are not to be stored


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


# --- weights that change under one name


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


# --- bypass


@pytest.mark.parametrize(
    ("reason", "body"),
    [
        ("not-json", b"{"),
        ("stream", b'{"model": "m",  "input": ["x"], "stream": true}'),
        ("upstream-cache", b'{"model": "m", "input": ["x"], "cache": {"no-cache": true}}'),
        ("duplicate-key", b'{"model": "a", "model": "b", "input": "x"}'),
        ("remote-media", b'{"model": "m", "input": ["x", "https://e/y.png"], "modality": ["text", "image"]}'),
    ],
)
async def test_what_is_uncertain_is_relayed_both_ways_to_the_byte(
    client: Client, upstream: ScriptedUpstream, reason: str, body: bytes
) -> None:
    await client.embed("x")
    upstream.reply = error_reply(200, b'{"whatever":  1}', x_custom="1")
    for _ in range(2):
        answer = await client.post(body)
        assert upstream.calls[-1].body == body
        assert (answer.body, answer.cache, answer.headers["x-custom"]) == (b'{"whatever":  1}', "BYPASS", "1")
        assert answer.headers["Cache-Status"] == f"embedding-proxy; fwd=bypass; detail={reason}"
    assert await client.metric("embedding_proxy_bypasses_total", reason=reason) == 2


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/jsonl", "application/json; charset=iso-8859-1"],
)
async def test_a_body_not_declared_as_json_is_bypassed(client: Client, content_type: str) -> None:
    answer = await client.post({"model": "m", "input": "x"}, Content_Type=content_type)
    assert answer.cache == "BYPASS"


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", 'application/json;charset="UTF8"']
)
async def test_json_by_any_other_spelling_is_json(client: Client, content_type: str) -> None:
    assert (await client.post({"model": "m", "input": "x"}, Content_Type=content_type)).cache == "MISS"


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_compressed_request_is_one_like_any_other(
    client: Client, upstream: ScriptedUpstream, coding: str, compress: Callable[[bytes], bytes]
) -> None:
    plain = orjson.dumps({"model": "m", "input": "x"})
    miss, hit = [await client.post(compress(plain), Content_Encoding=coding) for _ in range(2)]
    assert (miss.cache, hit.cache, miss.embeddings) == ("MISS", "HIT", hit.embeddings)
    assert (await client.embed("x")).cache == "HIT"
    (call,) = upstream.calls
    assert (call.body, "Content-Encoding" in call.headers) == (plain, False)


# Without the time, which would be in the names of the tests.
GZIPPED = gzip.compress(b'{"model":"m","input":"x"}', mtime=0)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"not gzip at all"),
        ("gzip", GZIPPED[:-4]),
        ("gzip", GZIPPED + b"more"),
        ("br", b'{"model":"m","input":"x"}'),
        ("gzip, gzip", gzip.compress(GZIPPED, mtime=0)),
    ],
)
async def test_what_can_not_be_inflated_is_relayed_as_it_is(
    client: Client, upstream: ScriptedUpstream, coding: str, body: bytes
) -> None:
    upstream.reply = error_reply(400, b"{}")
    assert (await client.post(body, Content_Encoding=coding)).cache == "BYPASS"
    assert (upstream.calls[-1].body, upstream.calls[-1].headers["Content-Encoding"]) == (body, coding)


async def test_what_could_not_be_inflated_holds_no_more_than_itself(client: Client, upstream: ScriptedUpstream) -> None:
    held: list[float] = []

    async def reply(_: Call) -> web.StreamResponse:
        held.append(await client.metric("embedding_proxy_held_request_bytes"))
        return web.Response(status=400)

    upstream.reply = reply
    await client.post(b"not gzip at all", Content_Encoding="gzip")
    assert held == [len(b"not gzip at all")]


async def test_a_body_that_grows_beyond_bounds_is_refused(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(max_body_bytes=100_000)
    bomb = gzip.compress(b'{"model":"m","input":"' + b"a" * 50_000_000 + b'"}')
    assert len(bomb) < 100_000
    assert (await client.post(bomb, Content_Encoding="gzip")).status == 413
    assert not upstream.calls


# --- Cache-Control


async def test_a_body_of_no_type_is_cached_where_the_upstream_takes_it(
    client: Client, upstream: ScriptedUpstream
) -> None:
    headers = {"Authorization": KEY}
    body = b'{"model":"m","input":"x"}'

    async def ask() -> UpstreamResponse:
        async with ClientSession(skip_auto_headers=["Content-Type"]) as session:
            untyped = Client(session, client.proxy)
            return await untyped.send("POST", "/v1/embeddings", body=body, headers=headers)

    assert (await client.post(body)).cache == "MISS"
    assert [(await ask()).cache for _ in range(3)] == ["MISS", "HIT", "HIT"]
    assert "Content-Type" not in upstream.calls[-1].headers
    assert (await client.post(body)).cache == "HIT"


async def test_the_field_that_kept_a_request_from_the_cache_is_named_once(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for fields in ({"prompt_name": "q"}, {"prompt_name": "r"}, {"a text of someone": 1}, {"dimensions": [1]}):
        await client.embed("x", **fields)
    said = [record.getMessage() for record in caplog.records if record.name == "proxy.embeddings.log_once"]
    assert [line.partition(": ")[2].partition(" (")[0] for line in said] == [
        "unknown-field 'prompt_name'",
        "unknown-field",
        "list-parameter 'dimensions'",
    ]


async def test_a_404_blames_the_base_url_until_it_has_succeeded(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    missing, upstream.reply = error_reply(404, {}), error_reply(404, {})
    await client.embed("x")
    assert f"404 from {upstream.base_url}/embeddings" in caplog.text
    upstream.reply = None
    await client.embed("x")
    caplog.clear()
    upstream.reply = missing
    await client.post({"model": "other", "input": "x"}, target="/embeddings?a=1")
    assert "404" not in caplog.text


async def test_no_cache_fetches_again_and_replaces(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed("x")
    upstream.reply = lambda call: upstream.embed(call, data=[{"index": 0, "embedding": [0.25] * 16}])
    fresh = await client.embed("x", headers={"Cache-Control": "no-cache"})
    assert (fresh.cache, fresh.vectors) == ("MISS", [[0.25] * 16])
    assert (await client.embed("x")).vectors == [[0.25] * 16]


async def test_no_store_stores_nothing(client: Client, upstream: ScriptedUpstream) -> None:
    answer = await client.embed("x", headers={"Cache-Control": "no-store"})
    assert answer.headers["Cache-Status"] == "embedding-proxy; fwd=miss; fwd-status=200"
    assert (await client.embed("x")).cache == "MISS"
    assert len(upstream.calls) == 2


async def test_only_if_cached_never_asks(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed("x")
    only = {"Cache-Control": "only-if-cached"}
    assert (await client.embed("x", headers=only)).cache == "HIT"
    refused = await client.embed(["x", "y"], headers=only)
    assert (refused.status, refused.json["error"]["code"]) == (504, "not_cached")
    assert "1 of 2" in refused.json["error"]["message"]
    assert len(upstream.calls) == 1


async def test_only_if_cached_is_told_which_items_are_missing(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed(["a", "c"])
    only = {"Cache-Control": "only-if-cached"}
    refused = await client.embed(["a", "b", "c", "b", "d"], headers=only)
    assert refused.json["error"] == {
        "message": "3 of 5 items are not cached.",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_cached",
        "items": 5,
        "missing": [1, 3, 4],
    }
    minimal = {**only, "Prefer": "wait=1, return=minimal"}
    assert (await client.embed(["a", "b"], headers=minimal)).json["error"]["missing"] == [1]
    saved = await client.metric("embedding_proxy_tokens_total", kind="saved")
    known = await client.embed(["a", "c"], headers=minimal)
    assert (known.status, known.body, known.cache) == (204, b"", "HIT")
    assert known.headers["Preference-Applied"] == "return=minimal"
    assert await client.metric("embedding_proxy_tokens_total", kind="saved") == saved
    assert (await client.embed(["a", "c"], headers={"Prefer": "return=minimal"})).status == 200
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("is_shared", [False, True])
async def test_only_a_valid_credential_is_told_what_is_missing(
    start_proxy: StartProxy, upstream: ScriptedUpstream, *, is_shared: bool
) -> None:
    client = await start_proxy(shares_all=is_shared)
    await client.embed("a")
    only = {"Cache_Control": "only-if-cached", "Prefer": "return=minimal"}
    asked = {"model": "m", "input": ["a", "b"]}
    stranger = await client.post(asked, key="Bearer another", **only)
    assert stranger.status == 504
    assert "missing" not in stranger.json["error"]
    assert (await client.post(asked, **only)).json["error"]["missing"] == [1]
    assert (await client.post(asked | {"input": "a"}, key="Bearer another", **only)).status == 504


async def test_a_partial_hit_says_how_many_items_were_cached(client: Client) -> None:
    assert "X-Cache-Hits" not in (await client.embed("a")).headers
    assert (await client.embed(["a", "b", "a", "c"])).headers["X-Cache-Hits"] == "2"


async def test_max_age_lets_the_young_pass(client: Client) -> None:
    await client.embed("x")
    assert (await client.embed("x", headers={"Cache-Control": "max-age=3600"})).cache == "HIT"


async def test_max_age_fetches_older_entries_again_and_replaces_them(
    start_proxy: StartProxy, upstream: ScriptedUpstream, sqlite_path: Path
) -> None:
    store = StoreSetting(path=sqlite_path)
    await (await start_proxy(store=store, clock=lambda: 1000.0)).embed("x")
    client = await start_proxy(store=store, clock=lambda: 2000.0)
    assert (await client.embed("x", headers={"Cache-Control": "max-age=999"})).cache == "MISS"
    assert (await client.embed("x", headers={"Cache-Control": "max-age=999"})).cache == "HIT"
    assert len(upstream.calls) == 2


async def test_an_entry_is_served_for_its_ttl_and_then_replaced(
    start_proxy: StartProxy, upstream: ScriptedUpstream, sqlite_path: Path
) -> None:
    now = 1000.0
    client = await start_proxy(store=StoreSetting(path=sqlite_path), ttl_s=60.0, clock=lambda: now)
    assert [(await client.embed("x")).cache for _ in range(2)] == ["MISS", "HIT"]
    now += 61
    assert [(await client.embed("x")).cache for _ in range(2)] == ["MISS", "HIT"]


# --- who is who


async def test_each_credential_has_its_own_entries(client: Client, upstream: ScriptedUpstream) -> None:
    body = {"model": "m", "input": "x"}
    keys: list[str | None] = ["Bearer a", "Bearer b", "bearer a", None]
    assert [(await client.post(body, key=key)).cache for key in keys] == ["MISS"] * 4
    assert [(await client.post(body, key=key)).cache for key in keys] == ["HIT"] * 4
    assert (await client.post(body, key=None, api_key="a")).cache == "MISS"
    assert (await client.post(body, key="Bearer a", openai_organization="o")).cache == "MISS"
    assert (await client.post(body, key="Bearer a", x_stainless_retry_count="1")).cache == "HIT"


async def test_azure_deployments_are_different_models(client: Client, upstream: ScriptedUpstream) -> None:
    body = {"model": "m", "input": "x"}
    targets = [f"/openai/deployments/{name}/embeddings?api-version=1" for name in ("a", "b")]
    assert [(await client.post(body, target=target)).cache for target in targets * 2] == ["MISS", "MISS", "HIT", "HIT"]
    assert [call.target for call in upstream.calls] == targets


async def test_the_four_spellings_of_the_route_share_entries(client: Client, upstream: ScriptedUpstream) -> None:
    body = {"model": "m", "input": "x"}
    targets = ["/v1/embeddings", "/api/v1/embeddings", "/api/embeddings", "/embeddings"]
    assert [(await client.post(body, target=target)).cache for target in targets] == ["MISS", "HIT", "HIT", "HIT"]
    assert upstream.calls[0].target == "/v1/embeddings"


# --- bodies


async def test_a_body_over_the_limit_is_refused_before_it_is_read(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(max_body_bytes=1000)
    answer = await client.embed("x" * 1000)
    assert (answer.status, answer.json["error"]["code"]) == (413, "body_too_large")
    assert not upstream.calls


async def test_a_chunked_body_over_the_limit_is_refused(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(max_body_bytes=1000)

    async def chunks() -> Any:
        for _ in range(10):
            yield b"x" * 500

    async with client.session.post(client.origin + "/v1/embeddings", data=chunks()) as response:
        assert response.status == 413
        assert (await response.json())["error"]["type"] == "invalid_request_error"
    assert not upstream.calls


async def test_megabytes_of_tokens(client: Client, upstream: ScriptedUpstream) -> None:
    tokens = [[(i * j) % 100_000 for i in range(1, 301)] for j in range(1, 2049)]
    assert len(orjson.dumps(tokens)) > 3_000_000
    miss = await client.embed(tokens, encoding_format="base64")
    hit = await client.embed(tokens, encoding_format="base64")
    assert (miss.cache, hit.cache) == ("MISS", "HIT")
    assert miss.embeddings == hit.embeddings
    assert len(hit.embeddings) == 2048


async def test_expect_100_continue_gets_a_response(client: Client) -> None:
    async with client.session.post(
        client.origin + "/v1/embeddings", json={"model": "m", "input": "x"}, expect100=True
    ) as response:
        assert response.status == 200


async def test_no_100_continue_before_a_refusal_nor_to_http_1_0(start_proxy: StartProxy) -> None:
    client = await start_proxy(max_body_bytes=1000)
    head = b"POST /v1/embeddings HTTP/%s\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    assert (await raw(client, head % (b"1.1", 5000), end=b"}}")).startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in await raw(client, head % (b"1.0", 2) + b"{}")


async def test_an_upstreams_own_x_cache_gives_way_to_ours(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda call: web.json_response(
        upstream.answer_to(call.json), headers={"X-Cache": "Miss from cdn", "Content-Digest": "sha-256=:x:"}
    )
    answer = await client.embed("x")
    assert answer.headers.getall("X-Cache") == ["MISS"]
    assert "Content-Digest" not in answer.headers


@pytest.mark.parametrize("fields", [{}, {"foo": 1}])
async def test_cache_status_is_added_to_that_of_other_caches(
    client: Client, upstream: ScriptedUpstream, fields: dict[str, Any]
) -> None:
    upstream.reply = error_reply(400, b"{}", Cache_Status="cdn; fwd=miss")
    answer = await client.embed("x", **fields)
    said = answer.headers.getall("Cache-Status")
    assert [status.partition(";")[0] for status in said] == ["cdn", "embedding-proxy"]
    assert answer.headers["X-Request-Id"]


async def test_extra_fields_of_an_upstream_are_in_the_response(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda call: upstream.embed(call, id="gen-1", provider="x", created=1)
    miss, hit = await client.embed(["a", "b"]), await client.embed(["a", "b"])
    assert {name: miss.json.get(name) for name in ("id", "provider", "created")} == {
        "id": "gen-1",
        "provider": "x",
        "created": 1,
    }
    assert set(hit.json) == {"object", "data", "model", "usage"}


@pytest.mark.parametrize("name", ["usage", "extra"])
async def test_what_can_not_be_written_again_is_left_out(client: Client, upstream: ScriptedUpstream, name: str) -> None:
    deep = b'{"prompt_tokens":1,"total_tokens":1,"x":' + b"[" * 300 + b"]" * 300 + b"}"

    def reply(call: Call) -> web.Response:
        rest = upstream.answer_to(call.json)
        del rest["usage"]
        body = orjson.dumps(rest)[:-1] + b',"%b":%b}' % (name.encode(), deep)
        return web.Response(body=body, content_type="application/json")

    upstream.reply = reply
    for _ in range(2):
        answer = await client.embed("x")
        assert (answer.status, set(answer.json)) == (200, {"object", "data", "model", "usage"})


async def test_tokens_beyond_counting_count_for_nothing(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(reports_full_usage=True)
    upstream.reply = lambda call: upstream.embed(call, usage={"prompt_tokens": 2**64 - 1, "total_tokens": 3})
    answer = await client.embed(["x", "y", "x"])
    assert (answer.status, answer.json["usage"]["total_tokens"]) == (200, 5)


GOOD = b'{"data":[{"embedding":[0.5,1]}]}'


@pytest.mark.parametrize("fields", [{}, {"foo": 1}], ids=["cached", "bypassed"])
@pytest.mark.parametrize(
    ("line", "field"),
    [(b"200 OK", b"X-Big: " + b"a" * 60_000), (b"200 OK", b"X-C: a\x01b"), (b"200 a\x01b", b"X-C: a")],
    ids=["long", "control", "reason"],
)
async def test_unusual_heads_of_upstream_responses_do_not_fail_the_request(
    start_proxy: StartProxy, line: bytes, field: bytes, fields: dict[str, Any]
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        head = b"HTTP/1.1 %b\r\n%b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        writer.write(head % (line, field, len(GOOD)) + GOOD)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        client = await start_proxy(upstream=UpstreamSetting(name="o", base_url=url))
        body = orjson.dumps({"model": "m", "input": "x", **fields})
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        answer = await raw(client, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\x01" not in answer
    assert (b"a" * 60_000 in answer) == field.startswith(b"X-Big")


async def test_an_h2c_upgrade_offer_on_a_post_is_no_websocket(client: Client, upstream: ScriptedUpstream) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    answers = [await client.embed("x", headers=offer) for _ in range(2)]
    assert [answer.cache for answer in answers] == ["MISS", "HIT"]
    assert not {"Upgrade", "HTTP2-Settings"} & set(upstream.calls[0].headers)


# --- stores


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_entries_outlive_the_process_where_there_is_a_store(
    start_proxy: StartProxy, upstream: ScriptedUpstream, sqlite_path: Path, redis_server: RedisServer, kind: str
) -> None:
    url = redis_server.url.replace("/0", "/3")
    store = {"memory": StoreSetting(), "sqlite": StoreSetting(path=sqlite_path), "redis": StoreSetting(url=url)}[kind]
    first, second = [await start_proxy(store=store) for _ in range(2)]
    miss = await first.embed(["a", "b"])
    after = await second.embed(["b", "a"])
    assert miss.vectors == after.vectors[::-1]
    assert after.cache == ("MISS" if kind == "memory" else "HIT")
    assert (await second.embed(["a"])).cache == "HIT"


async def test_without_its_store_the_proxy_works(start_proxy: StartProxy) -> None:
    client = await start_proxy(store=StoreSetting(url=f"redis://127.0.0.1:{free_port()}/0"))
    assert [(await client.embed("x")).cache for _ in range(2)] == ["MISS", "HIT"]
    # The second request asks again: another replica may have stored the item first.
    assert await client.metric("embedding_proxy_store_errors_total", operation="read", reason="connection") == 2


# --- counts


async def test_counters_agree_with_what_happened(start_proxy: StartProxy, sqlite_path: Path) -> None:
    store = StoreSetting(path=sqlite_path)
    await (await start_proxy(store=store)).embed(["old"])
    client = await start_proxy(store=store)
    await client.embed(["a", "b", "a"])
    await client.embed(["a", "b", "a", "c", "old"])
    await client.embed(["a", "old"])
    await client.post(b"{")
    items = {
        result: await client.metric("embedding_proxy_items_total", result=result)
        for result in ("memory", "store", "duplicate", "upstream")
    }
    requests = {
        outcome: await client.metric("embedding_proxy_requests_total", outcome=outcome)
        for outcome in ("hit", "partial", "miss", "bypass", "error")
    }
    assert items == {"memory": 4, "store": 1, "duplicate": 2, "upstream": 3}
    assert requests == {"hit": 1, "partial": 1, "miss": 1, "bypass": 1, "error": 0}
    assert await client.metric("embedding_proxy_upstream_batch_items_sum") == 3
    assert await client.metric("embedding_proxy_memory_entries") == 4
    assert await client.metric("embedding_proxy_tokens_total", kind="billed") == 3
    assert await client.metric("embedding_proxy_tokens_total", kind="saved") == 1 + 6 + 4


async def test_what_may_not_go_upstream_is_not_relayed_either(client: Client, upstream: ScriptedUpstream) -> None:
    answer = await client.embed("x", stream=True, headers={"Cache_Control": "only-if-cached"})
    assert answer.status == 504
    assert "stream" in answer.json["error"]["message"]
    assert upstream.calls == []
