"""``Cache-Control`` of requests, end to end."""

from pathlib import Path

import pytest
from aiohttp import ClientSession

from proxy.config.settings import StoreSetting
from tests.conftest import StartProxy
from tests.support.client import KEY, Client, UpstreamResponse
from tests.support.scripted import ScriptedUpstream, error_reply


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
