"""The cached route end to end: a real client, a real proxy, a real upstream."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession, web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.app import running
from proxy.config.settings import StoreSetting
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.direct_call import expected
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted import ScriptedUpstream, vector
from tests.support.settings import settings_for


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
