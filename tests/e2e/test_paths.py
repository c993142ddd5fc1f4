"""Paths of the cached route, and other paths that carry texts to embed, through a whole proxy."""

import gzip
import logging
from typing import Any

import pytest
from aiohttp import web

from proxy.config.settings import UpstreamSetting
from proxy.protocol.providers import PROVIDERS
from tests.conftest import StartProxy
from tests.embeddings.test_fast_path import request, wire
from tests.protocol.test_targets import CARRY_TEXTS
from tests.support.client import Client, raw
from tests.support.scripted import ScriptedUpstream, error_reply
from tests.upstream.test_router import calls, others, setting

__all__ = ["others"]

BODY = {"model": "m", "input": "x"}
VARIANTS = [
    "/v1/embeddings/",
    "//v1/embeddings",
    "/v1//embeddings",
    "/v1/%65mbeddings",
    "/v1/v1/embeddings",
    "/v1/embeddings/embeddings",
    "/v1/embeddings?",
    "/%76%31///%65mbeddings//",
]


# --- variants of the cached route


@pytest.mark.parametrize("target", VARIANTS)
async def test_path_variants_share_entries_and_one_url(client: Client, upstream: ScriptedUpstream, target: str) -> None:
    answers = [await client.post(BODY, target=target), await client.post(BODY), await client.post(BODY, target=target)]
    assert [answer.cache for answer in answers] == ["MISS", "HIT", "HIT"]
    assert [call.target for call in upstream.calls] == ["/v1/embeddings"]


async def test_query_of_a_path_variant_is_sent_and_keyed(client: Client, upstream: ScriptedUpstream) -> None:
    targets = ["/v1//embeddings/?a=%41", "/v1/embeddings?a=%41", "/v1/embeddings?a=A"]
    assert [(await client.post(BODY, target=target)).cache for target in targets] == ["MISS", "HIT", "MISS"]
    assert [call.target for call in upstream.calls] == ["/v1/embeddings?a=%41", "/v1/embeddings?a=A"]


async def test_repeated_path_variant_is_a_hit(client: Client, upstream: ScriptedUpstream) -> None:
    sent = request(target="/v1//%65mbeddings/")
    async with wire(client) as line:
        answers = [await line.ask(sent) for _ in range(5)]
    assert [b"X-Cache: HIT" in answer for answer in answers] == [False, True, True, True, True]
    assert len({answer.partition(b"\r\n\r\n")[2] for answer in answers[1:]}) == 1
    assert len(upstream.calls) == 1
    assert await client.metric("embedding_proxy_requests_total", outcome="hit") == 4


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("target", VARIANTS[:4])
async def test_other_methods_of_a_path_variant_are_passed_through(
    client: Client, upstream: ScriptedUpstream, method: str, target: str
) -> None:
    upstream.reply = error_reply(405, b"")
    assert (await client.send(method, target)).status == 405
    assert [call.target for call in upstream.calls] == [target]


@pytest.mark.parametrize("target", ["/v1/../v1/embeddings", "/v1/./embeddings", "/v1/x/%2e%2e/embeddings"])
async def test_dot_segments_are_not_resolved(client: Client, upstream: ScriptedUpstream, target: str) -> None:
    for _ in range(2):
        assert "X-Cache" not in (await client.post(BODY, target=target)).headers
    assert [call.target for call in upstream.calls] == [target, target]


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:1/v1/embeddings",
        "https://evil.example/v1/embeddings",
        "*",
        "evil.example:443",
        "v1/embeddings",
    ],
)
async def test_target_that_is_not_a_path_is_refused(client: Client, upstream: ScriptedUpstream, target: str) -> None:
    answer = await raw(client, request(b"{}", "Connection: close", target=target))
    assert answer[:5] + answer[8:13] == b"HTTP/ 400 "
    assert not upstream.calls


@pytest.mark.parametrize(
    "target", ["//127.0.0.1:1/v1/embeddings", "/\\127.0.0.1:1/v1/embeddings", "/@127.0.0.1:1/v1/embeddings"]
)
async def test_path_that_looks_like_a_host_stays_a_path(
    client: Client, upstream: ScriptedUpstream, target: str
) -> None:
    upstream.reply = error_reply(404, b"no")
    assert (await client.post(BODY, target=target)).body == b"no"
    assert [call.target for call in upstream.calls] == [target]


# --- engines


def served_by_path(upstream: ScriptedUpstream) -> None:
    """The path chooses the model, as at servers that still have engines."""
    upstream.reply = lambda call: web.json_response(
        upstream.answer_to(call.json | {"model": call.target.split("/engines/")[1].partition("/")[0]})
    )


async def test_engine_is_the_model_and_part_of_the_key(client: Client, upstream: ScriptedUpstream) -> None:
    served_by_path(upstream)
    one, two = "/v1/engines/one/embeddings", "/v1/engines/two/embeddings"
    first, again, other = [await client.post({"input": ["x"]}, target=target) for target in (one, one + "/", two)]
    assert [answer.cache for answer in (first, again, other)] == ["MISS", "HIT", "MISS"]
    assert first.embeddings == again.embeddings != other.embeddings
    assert (again.json["model"], other.json["model"]) == ("one", "two")
    assert [(call.target, call.json) for call in upstream.calls] == [(one, {"input": ["x"]}), (two, {"input": ["x"]})]
    assert await client.metric("embedding_proxy_items_total", model="one") == 2


async def test_engine_and_model_of_the_same_name_have_separate_entries(
    client: Client, upstream: ScriptedUpstream
) -> None:
    assert (await client.post(BODY, target="/v1/engines/m/embeddings")).cache == "MISS"
    assert (await client.post(BODY)).cache == "MISS"


async def test_engine_misses_are_fetched_without_a_model(client: Client, upstream: ScriptedUpstream) -> None:
    served_by_path(upstream)
    target = "/v1/engines/one/embeddings"
    await client.post({"input": ["x"]}, target=target)
    answer = await client.post({"input": ["x", "y"]}, target=target)
    assert (answer.cache, upstream.calls[1].json) == ("PARTIAL", {"input": ["y"]})


async def test_different_models_in_path_and_body_are_both_keyed(client: Client, upstream: ScriptedUpstream) -> None:
    one, two = "/v1/engines/one/embeddings", "/v1/engines/two/embeddings"
    asked = [(one, BODY), (two, BODY), (one, BODY | {"model": "n"}), (one, BODY | {"model": "one"})]
    for cache in ("MISS", "HIT"):
        for target, body in asked:
            answer = await client.post(body, target=target)
            assert answer.cache == cache
            assert ("detail=whole-body" in answer.headers["Cache-Status"]) == (body["model"] != "one")
    assert [(call.target, call.json) for call in upstream.calls] == asked


@pytest.mark.parametrize("engine", ["gemini-embedding-2", "vendor/gemini-embedding-2"])
async def test_items_of_a_fusing_engine_are_cached_together(
    client: Client, upstream: ScriptedUpstream, engine: str
) -> None:
    one = [{"index": 0, "embedding": [1.0, 2.0]}]
    upstream.reply = lambda call: web.json_response(upstream.answer_to(call.json | {"model": engine}, data=one))
    target = f"/v1/engines/{engine}/embeddings"
    bodies = [{"input": ["x", "y"]}, {"input": ["x", "y"]}, {"input": ["x", "z"]}]
    assert [(await client.post(body, target=target)).cache for body in bodies] == ["MISS", "HIT", "MISS"]


@pytest.mark.parametrize("body", [{"input": "x"}, {"model": "m", "input": "x"}])
async def test_engine_with_several_vectors_per_item_is_not_cached(client: Client, body: dict[str, str]) -> None:
    assert (await client.post(body, target="/v1/engines/colbert-v2/embeddings")).cache == "BYPASS"


async def test_unknown_engine_is_the_upstreams_404(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = error_reply(404, b'{"error":"gone"}')
    assert (await client.post({"input": "x"}, target="/v1/engines/m/embeddings")).body == b'{"error":"gone"}'


async def test_generic_deployment_needs_no_model_in_the_body(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda call: web.json_response(upstream.answer_to(call.json | {"model": "m"}))
    target = "/openai/deployments/ada/embeddings?api-version=1"
    assert [(await client.post({"input": "x"}, target=target)).cache for _ in range(2)] == ["MISS", "HIT"]


# --- Azure behind a gateway


async def test_azure_behind_a_gateway_is_cached_at_both_paths(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    base_url = upstream.base_url.removesuffix("/v1") + "/aoai"
    azure = UpstreamSetting(name="azure", base_url=base_url, provider=PROVIDERS["azure"])
    client = await start_proxy(upstream=azure)
    rest = "/openai/deployments/ada/embeddings?api-version=2024-10-21"
    targets = [rest, "/aoai" + rest, "/aoai/" + rest, "/v1" + rest]
    assert [(await client.post(BODY, target=target)).cache for target in targets] == ["MISS", "HIT", "HIT", "HIT"]
    assert [call.target for call in upstream.calls] == ["/aoai" + rest]
    await client.send("GET", "/openai/models?api-version=1")
    assert upstream.calls[-1].target == "/aoai/openai/models?api-version=1"


# --- several upstreams


OWN_API = "/api/embeddings"  # of Ollama; elsewhere the cached route


async def several(start_proxy: StartProxy, others: list[ScriptedUpstream]) -> Client:
    return await start_proxy(routed=(setting("one", others[0], "gpu", "gemini-*", "amazon.titan-*"),))


async def test_engine_chooses_the_upstream(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await several(start_proxy, others)
    for server in (upstream, others[0]):
        served_by_path(server)
    for engine, server in (("gpu", others[0]), ("ada", upstream)):
        target = f"/v1/engines/{engine}/embeddings"
        assert (await client.post({"input": "x"}, target=target)).cache == "MISS"
        assert [call.target for call in server.calls] == [target]
    assert calls(upstream, others[0]) == [1, 1]


@pytest.mark.parametrize("target", [path for path in CARRY_TEXTS if "/model" not in path and path != OWN_API])
async def test_embedding_texts_go_to_the_upstream_of_their_model_or_are_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream], target: str
) -> None:
    client = await several(start_proxy, others)
    upstream.reply = others[0].reply = error_reply(200, b'{"their":"own"}')
    answer = await client.post({"model": "gpu", "texts": ["secret"]}, target=target)
    assert (answer.status, answer.cache, answer.body) == (200, "BYPASS", b'{"their":"own"}')
    assert [call.target for call in others[0].calls] == [target.replace("/api/v1", "/v1")]
    if "feature-extraction" not in target:
        for body in (b'{"texts":["secret"]}', b"secret", b'{"model":["gpu"],"texts":["secret"]}'):
            refused = await client.post(body, target=target)
            assert (refused.status, refused.json["error"]["code"]) == (400, "invalid_request")
            assert "names a model" in refused.json["error"]["message"]
    assert calls(upstream, others[0]) == [0, 1]


@pytest.mark.parametrize(
    "target",
    [
        "/v1beta/models/gemini-embedding-001:batchEmbedContents",
        "/v1beta/models/gemini-embedding-001:embedContent?key=k",
        "/model/amazon.titan-embed-text-v2:0/invoke",
        "/hf-inference/models/gpu/pipeline/feature-extraction",
        "/pipeline/feature-extraction/gpu",
    ],
)
async def test_model_in_the_path_of_another_api_chooses_the_upstream(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream], target: str
) -> None:
    client = await several(start_proxy, others)
    upstream.reply = others[0].reply = error_reply(200, b"{}")
    assert (await client.post({"inputs": ["secret"]}, target=target)).cache == "BYPASS"
    assert [call.target for call in others[0].calls] == [target]
    assert not upstream.calls


async def test_unrouted_models_go_to_the_default_by_any_path(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await several(start_proxy, others)
    upstream.reply = error_reply(200, b"{}")
    targets = ["/api/embed", "/v1beta/models/other:embedContent"]
    bodies: list[dict[str, Any]] = [{"model": "nomic", "input": "x"}, {"content": {}}]
    for target, body in zip(targets, bodies, strict=True):
        assert (await client.post(body, target=target)).status == 200
    assert [call.target for call in upstream.calls] == targets


async def test_request_without_model_goes_to_a_default_that_needs_none(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    tei = UpstreamSetting(name="tei", base_url=upstream.base_url, provider=PROVIDERS["tei"])
    client = await start_proxy(upstream=tei, routed=(setting("one", others[0], "gpu"),))
    upstream.reply = error_reply(200, b"[[1.0]]")
    assert (await client.post({"inputs": "x"}, target="/embed")).body == b"[[1.0]]"
    assert calls(upstream, others[0]) == [1, 0]


async def test_compressed_body_of_another_api_is_read_for_its_model(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await several(start_proxy, others)
    upstream.reply = others[0].reply = error_reply(200, b"{}")
    body = gzip.compress(b'{"model":"gpu","input":"secret"}')
    assert (await client.post(body, target="/api/embed", content_encoding="gzip")).status == 200
    assert [call.body for call in others[0].calls] == [body]
    assert not upstream.calls


async def test_body_read_for_its_model_is_bounded(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await start_proxy(routed=(setting("one", others[0], "gpu"),), max_body_bytes=1000)
    answer = await client.post({"model": "gpu", "input": "x" * 1000}, target="/api/embed")
    assert (answer.status, answer.json["error"]["code"]) == (413, "body_too_large")
    assert calls(upstream, others[0]) == [0, 0]
    assert await client.metric("embedding_proxy_held_request_bytes") == 0


async def test_post_without_a_body_is_passed_through(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await several(start_proxy, others)
    upstream.reply = error_reply(200, b"{}")
    assert (await client.send("POST", "/v1/embed-jobs/1/cancel")).status == 200
    assert calls(upstream, others[0]) == [1, 0]


# --- what is said of it


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("proxy.")
    ]


@pytest.mark.parametrize(
    ("target", "shown", "hint"),
    [
        ("/api/embed", "/api/embed", "Set the client's base URL to this proxy's /v1 (logged once)"),
        ("/v2/embed?key=secret", "/v2/embed", "Set the client's base URL to this proxy's /v1 (logged once)"),
        ("/secret/v1/embeddings", "/…/v1/embeddings", "part of the upstream's URL before /embeddings (logged once)"),
        ("/v1/../v1/embeddings", "/v1/…/v1/embeddings", "or --upstream (base_url) to the part"),
    ],
)
async def test_uncached_embeddings_path_is_logged_once(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, target: str, shown: str, hint: str
) -> None:
    upstream.reply = error_reply(200, b"{}")
    for _ in range(3):
        assert (await client.post(BODY, target=target)).status == 200
    (line,) = said(caplog)
    assert line.startswith(f"POST {shown} looks like an embeddings call and is relayed uncached; POST /v1/embeddings ")
    assert hint in line
    assert "secret" not in line


async def test_number_of_logged_paths_is_bounded(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.reply = error_reply(200, b"{}")
    for n in range(40):
        await client.post(BODY, target="/api" * (n % 7) + f"/v{n}/embed")
    assert len(said(caplog)) == 16


async def test_other_routes_and_methods_are_not_logged(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.reply = error_reply(200, b"{}")
    await client.post(BODY, target="/v1/chat/completions")
    await client.send("GET", "/v1/embeddings/models")
    await client.send("POST", "/api/embed")
    assert said(caplog) == []
