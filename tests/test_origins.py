from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from proxy.config import SameModel, UpstreamSetting
from proxy.errors import ConfigError
from proxy.providers import PROVIDERS
from tests.client import Client
from tests.conftest import StartProxy
from tests.redis_server import free_port
from tests.scripted import ScriptedUpstream, error_reply


@pytest.fixture
async def others() -> AsyncIterator[list[ScriptedUpstream]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(ScriptedUpstream().serving()) for _ in range(2)]


def setting(name: str, upstream: ScriptedUpstream, *models: str, same: tuple[SameModel, ...] = ()) -> UpstreamSetting:
    return UpstreamSetting(name=name, base_url=upstream.base_url, models=models, same_model=same)


def calls(*upstreams: ScriptedUpstream) -> list[int]:
    return [len(upstream.calls) for upstream in upstreams]


# --- by model


async def test_models_go_where_their_pattern_says_and_the_rest_to_the_default(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    one, two = others
    client = await start_proxy(routed=(setting("one", one, "text-*", "ada"), setting("two", two, "te*", "vendor/[ab]")))
    for model in ("text-3", "ada", "tea", "vendor/a", "vendor/c", "Text-3"):
        assert (await client.embed("x", model=model)).cache == "MISS"
        assert (await client.embed("x", model=model)).cache == "HIT"
    assert [[call.json["model"] for call in upstream.calls] for upstream in (one, two, upstream)] == [
        ["text-3", "ada"],
        ["tea", "vendor/a"],
        ["vendor/c", "Text-3"],
    ]


async def test_a_bypassed_request_goes_to_its_models_upstream_and_one_without_a_model_to_the_default(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await start_proxy(routed=(setting("one", others[0], "a"),))
    assert (await client.embed("x", model="a", unheard_of=1)).cache == "BYPASS"
    assert calls(others[0], upstream) == [1, 0]
    assert (await client.post(b'{"input": "x", "model": 7}')).cache == "BYPASS"
    await client.send("GET", "/v1/models")
    assert calls(others[0], upstream) == [1, 2]


async def test_each_upstream_has_the_fields_of_its_own_provider(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    jina = UpstreamSetting(name="jina", base_url=others[0].base_url, models=("jina-*",), provider=PROVIDERS["jina"])
    client = await start_proxy(routed=(jina,))
    for model, caches in (("jina-v3", ["MISS", "HIT"]), ("other", ["BYPASS", "BYPASS"])):
        answers = [await client.embed(["x"], model=model, late_chunking=False) for _ in range(2)]
        assert [answer.cache for answer in answers] == caches


async def test_the_same_item_at_two_upstreams_is_two_entries(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    # A proxy whose routing has changed must not serve what another upstream said.
    first = await start_proxy(routed=(setting("one", others[0], "m"),))
    assert (await first.embed("x")).cache == "MISS"
    keys = [await key_urls(client) for client in (first, await start_proxy())]
    assert keys[0] != keys[1]


async def key_urls(client: Client) -> str:
    return client.proxy.origins.of("m").routes.embeddings("/v1/embeddings")


# --- the same model elsewhere


async def proxy_with_alternatives(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> Client:
    same = (SameModel(upstream="two", model="vendor/m"), SameModel(upstream="three"))
    return await start_proxy(
        upstream=setting("default", upstream),
        routed=(
            setting("one", upstream, "m", same=same),
            setting("two", others[0], "vendor/*"),
            setting("three", others[1], "3"),
        ),
    )


@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_where_one_has_no_answer_the_next_that_serves_the_model_is_asked(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream], status: int
) -> None:
    client = await proxy_with_alternatives(start_proxy, upstream, others)
    upstream.reply = error_reply(status, {"error": {"message": "no"}})
    answer = await client.embed(["x", "y"])
    assert (answer.status, answer.cache) == (200, "MISS")
    assert calls(upstream, *others) == [1, 1, 0]
    assert others[0].calls[0].json == {"model": "vendor/m", "input": ["x", "y"]}
    assert answer.json["model"] == "m"
    # It is the one model's entry, whoever computed it, and stays when the first is back.
    upstream.reply = None
    again = await client.embed(["x", "y", "z"])
    assert again.cache == "PARTIAL"
    assert again.embeddings[:2] == answer.embeddings
    assert [call.items for call in upstream.calls[1:]] == [["z"]]
    assert await client.metric("embedding_proxy_upstream_fallbacks_total", upstream="two") == 1


async def test_they_are_asked_in_order(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await proxy_with_alternatives(start_proxy, upstream, others)
    upstream.reply = others[0].reply = error_reply(500, {"error": {"message": "no"}})
    assert (await client.embed("x")).status == 200
    assert calls(upstream, *others) == [1, 1, 1]
    assert others[1].calls[0].json["model"] == "m"


async def test_if_nobody_has_an_answer_the_first_ones_is_relayed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await proxy_with_alternatives(start_proxy, upstream, others)
    upstream.reply = error_reply(429, b'{"error": "first"}', retry_after="7")
    others[0].reply = error_reply(401, b'{"error": "second"}')
    others[1].reply = error_reply(500, b'{"error": "third"}')
    answer = await client.embed("x")
    assert (answer.status, answer.body, answer.headers["Retry-After"]) == (429, b'{"error": "first"}', "7")
    assert calls(upstream, *others) == [1, 1, 1]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_an_answer_about_the_request_is_an_answer(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream], status: int
) -> None:
    client = await proxy_with_alternatives(start_proxy, upstream, others)
    upstream.reply = error_reply(status, {"error": {"message": "no"}})
    assert (await client.embed("x")).status == status
    assert calls(*others) == [0, 0]


async def test_an_upstream_that_can_not_be_reached_has_no_answer(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    upstream.base_url = f"http://127.0.0.1:{free_port()}/v1"
    client = await proxy_with_alternatives(start_proxy, upstream, others)
    for n in range(8):  # before its breaker opens and after
        assert (await client.embed(str(n))).status == 200
    assert calls(*others) == [8, 0]


async def test_nobody_is_asked_whom_the_operator_has_not_declared(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await start_proxy(routed=(setting("one", others[0], "m"), setting("two", others[1], "m")))
    others[0].reply = error_reply(500, {"error": {"message": "no"}})
    assert (await client.embed("x")).status == 500
    assert calls(upstream, others[1]) == [0, 0]


async def test_a_proxy_that_would_be_its_own_upstream_does_not_start(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    port = free_port()
    itself = UpstreamSetting(name="llamacpp", base_url=f"http://localhost:{port}/v1")
    with pytest.raises(ConfigError, match="is this proxy's own address; choose another --port or --upstream"):
        await start_proxy(port=port, upstream=itself)
