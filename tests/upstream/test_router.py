from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from proxy.config.settings import SameModel, StoreSetting, UpstreamSetting
from proxy.errors import ConfigError
from proxy.protocol.providers import PROVIDERS
from proxy.upstream.egress import Egress, parse_proxy
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.redis_server import free_port
from tests.support.scripted import ScriptedUpstream, error_reply


@pytest.fixture
async def others() -> AsyncIterator[list[ScriptedUpstream]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(ScriptedUpstream().serving()) for _ in range(2)]


def setting(name: str, upstream: ScriptedUpstream, *models: str, same: tuple[SameModel, ...] = ()) -> UpstreamSetting:
    return UpstreamSetting(name=name, base_url=upstream.base_url, models=models, same_model=same)


def calls(*upstreams: ScriptedUpstream) -> list[int]:
    return [len(upstream.calls) for upstream in upstreams]


# --- choice by model


async def test_model_patterns_choose_the_upstream(
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


UNREADABLE = [
    ({"Content-Type": "text/json"}, b'{"model":"gpu","input":"x"}'),
    ({"Content-Digest": "sha-256=:x:"}, b'{"model":"gpu","input":"x"}'),
    ({}, b'{"model":"gpu","input":"x","stream":true}'),
    ({}, b'{"model":"gpu","input":"\\ud800"}'),
    ({}, b'{"model":"gpu","input":"x","dimensions":NaN}'),
]


@pytest.mark.parametrize(("fields", "body"), UNREADABLE)
async def test_bypass_goes_to_the_upstream_of_its_model(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    others: list[ScriptedUpstream],
    fields: dict[str, str],
    body: bytes,
) -> None:
    client = await start_proxy(routed=(setting("one", others[0], "gpu"),))
    answered = error_reply(400, b"{}")
    upstream.reply = others[0].reply = answered
    headers = {"Content-Type": "application/json", "Authorization": "Bearer k"} | fields
    answer = await client.send("POST", "/v1/embeddings", body=body, headers=headers)
    assert (answer.status, answer.cache) == (400, "BYPASS")
    assert [call.body for call in others[0].calls] == [body]
    assert not upstream.calls


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpu","input":"x"',
        b"\x1f\x8b",
        b"[" * 100_000,
        b"[]",
        b'{"input":"x"}',
        b'{"input":"x","model":null}',
        b'{"input":"x","model":["gpu"]}',
    ],
)
async def test_unreadable_body_is_refused_with_several_upstreams(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream], body: bytes
) -> None:
    client = await start_proxy(routed=(setting("one", others[0], "gpu"),))
    answer = await client.post(body)
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_request")
    assert calls(upstream, others[0]) == [0, 0]


async def test_body_without_model_goes_to_a_default_that_needs_none(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    tei = UpstreamSetting(name="tei", base_url=upstream.base_url, provider=PROVIDERS["tei"])
    client = await start_proxy(upstream=tei, routed=(setting("one", others[0], "gpu"),))
    upstream.reply = lambda call: web.json_response(upstream.answer_to(call.json | {"model": "served"}))
    assert [(await client.post({"input": "x"})).cache for _ in range(2)] == ["MISS", "HIT"]
    assert calls(upstream, others[0]) == [1, 0]


DEPLOYMENT = "/openai/deployments/dep-1/embeddings?api-version=2024-10-21"


@pytest.mark.parametrize("model", [None, "text-embedding-3-small", "gpu"])
async def test_deployment_goes_to_an_upstream_with_deployments(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream], model: str | None
) -> None:
    azure = UpstreamSetting(
        name="azure",
        base_url=others[0].base_url.removesuffix("/v1") + "/openai/v1",
        provider=PROVIDERS["azure"],
        models=("dep-*",),
    )
    openai = UpstreamSetting(name="openai", base_url=upstream.base_url, provider=PROVIDERS["openai"])
    client = await start_proxy(upstream=openai, routed=(setting("one", others[1], "gpu"), azure))
    others[0].reply = lambda call: web.json_response(others[0].answer_to(call.json | {"model": "m"}))
    body = {"input": ["secret"]} | ({} if model is None else {"model": model})
    if model != "gpu":
        assert (await client.post(body, target=DEPLOYMENT, key=None, api_key="k")).cache == "MISS"
        assert [call.target for call in others[0].calls] == [DEPLOYMENT]
    refused = await client.post(body, target=DEPLOYMENT.replace("dep-1", "other"), key=None, api_key="k")
    assert refused.status == (200 if model == "gpu" else 400)  # `one` may have deployments, OpenAI has none
    assert not upstream.calls


async def test_other_routes_go_to_the_default_upstream(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    cohere = UpstreamSetting(
        name="cohere",
        base_url=others[0].base_url.replace("/v1", "/compatibility/v1"),
        models=("embed-*",),
        provider=PROVIDERS["cohere"],
    )
    client = await start_proxy(routed=(cohere,))
    own = "/compatibility/v1/embeddings"
    await client.send("GET", own)
    await client.send("GET", "/v1/models")
    assert [call.target for call in upstream.calls] == [own, "/v1/models"]
    assert (await client.post({"model": "embed-v4", "input": ["x"]}, target=own)).cache == "MISS"
    assert (await client.post({"model": "embed-v4", "input": ["x"]})).cache == "HIT"
    assert [call.target for call in others[0].calls] == [own]


async def test_native_api_is_passed_through_with_several_upstreams(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    ollama = UpstreamSetting(name="ollama", base_url=upstream.base_url, provider=PROVIDERS["ollama"])
    client = await start_proxy(upstream=ollama, routed=(setting("one", others[0], "text-*"),))
    upstream.reply = error_reply(200, {"embedding": [1.0]})
    answer = await client.post({"model": "nomic", "prompt": "x"}, target="/api/embeddings")
    assert (answer.cache, answer.json) == ("BYPASS", {"embedding": [1.0]})
    assert [call.target for call in upstream.calls] == ["/api/embeddings"]


async def test_unknown_model_names_use_bounded_memory(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await start_proxy(routed=(setting("one", others[0], "gpu"),))
    origins = client.proxy.origins
    for n in range(10_000):
        assert origins.for_model(f"{n}") is origins.default
    assert origins.for_model("x" * 1_000_000) is origins.default
    assert origins.for_model("gpu").name == "one"
    assert len(origins._known) <= 4096
    assert max(map(len, origins._known)) <= 256


async def test_each_upstream_applies_its_provider_fields(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    jina = UpstreamSetting(name="jina", base_url=others[0].base_url, models=("jina-*",), provider=PROVIDERS["jina"])
    client = await start_proxy(routed=(jina,))
    for model, is_known in (("jina-v3", True), ("other", False)):
        answers = [await client.embed(["x"], model=model, late_chunking=False) for _ in range(2)]
        assert [answer.cache for answer in answers] == ["MISS", "HIT"]
        for answer in answers:  # a field that nobody described is keyed with the whole body
            assert ("whole-body" in answer.headers["Cache-Status"]) != is_known


async def test_same_item_at_two_upstreams_has_two_entries(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    # A proxy whose routing has changed must not serve what another upstream said.
    first = await start_proxy(routed=(setting("one", others[0], "m"),))
    assert (await first.embed("x")).cache == "MISS"
    keys = [await key_urls(client) for client in (first, await start_proxy())]
    assert keys[0] != keys[1]


async def key_urls(client: Client) -> str:
    return client.proxy.origins.for_model("m").routes.embeddings("/v1/embeddings")


# --- failover


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
async def test_outage_fails_over_to_the_next_upstream(
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


async def test_fallbacks_are_tried_in_order(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await proxy_with_alternatives(start_proxy, upstream, others)
    upstream.reply = others[0].reply = error_reply(500, {"error": {"message": "no"}})
    assert (await client.embed("x")).status == 200
    assert calls(upstream, *others) == [1, 1, 1]
    assert others[1].calls[0].json["model"] == "m"


async def test_if_all_fail_the_first_response_is_relayed(
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
async def test_error_about_the_request_does_not_fail_over(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream], status: int
) -> None:
    client = await proxy_with_alternatives(start_proxy, upstream, others)
    upstream.reply = error_reply(status, {"error": {"message": "no"}})
    assert (await client.embed("x")).status == status
    assert calls(*others) == [0, 0]


async def test_unreachable_upstream_fails_over(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    upstream.base_url = f"http://127.0.0.1:{free_port()}/v1"
    client = await proxy_with_alternatives(start_proxy, upstream, others)
    for n in range(8):  # before its breaker opens and after
        assert (await client.embed(str(n))).status == 200
    assert calls(*others) == [8, 0]


async def test_fallback_response_follows_its_provider_rules(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    nemo = UpstreamSetting(name="two", base_url=others[0].base_url, models=("n",), provider=PROVIDERS["nemorouter"])
    first = setting("one", upstream, "m", same=(SameModel(upstream="two"),))
    client = await start_proxy(routed=(first, nemo))
    upstream.reply = error_reply(503, {})
    others[0].reply = lambda call: web.json_response(
        others[0].answer_to(call.json), headers={"x-nr-guardrails": "redacted"}
    )
    assert [(await client.embed("x")).cache for _ in range(2)] == ["MISS", "MISS"]


async def test_no_failover_to_a_provider_that_reads_the_request_differently(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    together = UpstreamSetting(name="two", base_url=others[0].base_url, models=("n",), provider=PROVIDERS["together"])
    first = setting("one", upstream, "m", same=(SameModel(upstream="two"),))
    client = await start_proxy(routed=(first, together))
    upstream.reply = error_reply(503, {})
    assert (await client.embed("x", dimensions=8)).status == 503
    assert (await client.embed("x")).status == 200
    assert [call.json for call in others[0].calls] == [{"model": "m", "input": "x"}]


async def test_adding_a_fallback_keeps_stored_entries(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream], sqlite_path: Path
) -> None:
    """The upstream's own name for the model is not the one that is asked for."""
    store = StoreSetting(path=sqlite_path)
    upstream.reply = lambda call: upstream.embed(call, model="m-2026")
    before = await (await start_proxy(store=store)).embed(["a", "b"])
    first = setting("one", upstream, "m", same=(SameModel(upstream="two"),))
    client = await start_proxy(store=store, routed=(first, setting("two", others[0], "n")))
    after = await client.embed(["a", "b", "c"])
    assert (after.cache, after.embeddings[:2], after.json["model"]) == ("PARTIAL", before.embeddings, "m-2026")
    upstream.reply = error_reply(503, {})
    instead = await client.embed(["a", "d"])
    assert (instead.cache, instead.embeddings[0], instead.json["model"]) == ("PARTIAL", before.embeddings[0], "m-2026")


async def test_fallback_deployment_is_called_by_its_path(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    east = UpstreamSetting(
        name="east",
        base_url=upstream.base_url.removesuffix("/v1"),
        provider=PROVIDERS["azure"],
        models=("m",),
        same_model=(SameModel(upstream="west", model="other dep"), SameModel(upstream="openai")),
    )
    west = UpstreamSetting(
        name="west", base_url=others[0].base_url.removesuffix("/v1"), provider=PROVIDERS["azure"], models=("w",)
    )
    openai = UpstreamSetting(name="openai", base_url=others[1].base_url, provider=PROVIDERS["openai"], models=("o",))
    client = await start_proxy(upstream=setting("default", upstream), routed=(east, west, openai))
    upstream.reply = others[0].reply = error_reply(503, {})
    answer = await client.post({"model": "m", "input": "x"}, target="/openai/deployments/dep/embeddings?api-version=1")
    assert answer.status == 200
    assert [call.target for call in others[0].calls] == ["/openai/deployments/other%20dep/embeddings?api-version=1"]
    assert [call.target for call in others[1].calls] == ["/v1/embeddings"]


async def test_no_failover_to_an_undeclared_upstream(
    start_proxy: StartProxy, upstream: ScriptedUpstream, others: list[ScriptedUpstream]
) -> None:
    client = await start_proxy(routed=(setting("one", others[0], "m"), setting("two", others[1], "m")))
    others[0].reply = error_reply(500, {"error": {"message": "no"}})
    assert (await client.embed("x")).status == 500
    assert calls(upstream, others[1]) == [0, 0]


async def test_own_address_as_upstream_is_a_config_error(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    port = free_port()
    itself = UpstreamSetting(name="llamacpp", base_url=f"http://localhost:{port}/v1")
    with pytest.raises(ConfigError, match="is this proxy's own address; choose another --port or --upstream"):
        await start_proxy(port=port, upstream=itself)


async def test_own_address_as_forward_proxy_is_a_config_error(start_proxy: StartProxy) -> None:
    port = free_port()
    through = Egress(proxy=parse_proxy(f"http://u:c4nary@127.0.0.1:{port}"))
    itself = UpstreamSetting(name="openai", base_url="https://api.openai.com/v1", egress=through)
    with pytest.raises(ConfigError) as error:
        await start_proxy(port=port, upstream=itself)
    assert str(error.value) == (
        f"forward proxy http://127.0.0.1:{port} is this proxy's own address; choose another --port or --upstream-proxy"
    )
