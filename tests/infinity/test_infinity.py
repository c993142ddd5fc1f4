"""The proxy in front of a real Infinity: ``make test-infinity``."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from aiohttp import ClientSession, web
from prometheus_client.parser import text_string_to_metric_families

from proxy.config.settings import UpstreamSetting
from proxy.protocol.providers import PROVIDERS
from tests.clients.test_clients import python
from tests.conftest import StartProxy
from tests.e2e.test_merged_requests import Ask, behind_a_first
from tests.infinity.server import DIMENSIONS, KEY, MAX_CHARACTERS, MODEL, VENV, InfinityServer, is_installed
from tests.support.client import Client, UpstreamResponse
from tests.support.client_process import ClientProcess
from tests.support.scripted import Call, ScriptedUpstream

pytestmark = [
    pytest.mark.infinity,
    pytest.mark.skipif(not is_installed(), reason="there is no Infinity; make test-infinity installs it"),
]

TEXTS = ["A cat sat on the mat.", "deux à deux", "三つ"]
TOO_LONG = "w" * (MAX_CHARACTERS + 1)
# How far apart the vectors of one text are that were computed in different batches.
_TOLERANCE = 1e-6

_PYTHON = str(VENV / "bin/python")
EMBEDS = {
    "infinity_client": python("infinity_rest", of=_PYTHON),
    "openai": python("openai_sync"),
    "openai async": python("openai_async"),
    "langchain": python("langchain_text"),
    "haystack": python("haystack_documents"),
    "ragflow": python("ragflow_openai"),
    "curl": python("curl", "absent"),
}
# What Infinity takes neither from the client itself nor through the proxy.
REFUSED = {
    "langchain, tokens": python("langchain_tokens"),
    "openai, null": python("openai_null"),
}

Forward = Callable[[Call], Awaitable[web.Response]]
StartClient = Callable[[tuple[str, ...]], ClientProcess]


@pytest.fixture(scope="module")
def infinity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfinityServer]:
    server = InfinityServer(tmp_path_factory.mktemp("infinity"))
    yield server
    server.popen.terminate()
    server.wait()


@pytest.fixture
async def client(start_proxy: StartProxy, infinity: InfinityServer) -> Client:
    upstream = UpstreamSetting(name="infinity", base_url=infinity.base_url, provider=PROVIDERS["infinity"])
    return await start_proxy(upstream=upstream)


@pytest.fixture
def direct(client: Client, infinity: InfinityServer) -> Client:
    """Asks Infinity itself."""
    client_of_infinity = Client(client.session, client.proxy)
    client_of_infinity.origin = infinity.base_url
    return client_of_infinity


@pytest.fixture
def start_client(tmp_path: Path) -> Iterator[StartClient]:
    started: list[ClientProcess] = []

    def start(command: tuple[str, ...]) -> ClientProcess:
        started.append(ClientProcess(list(command), tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def hop(client: Client, upstream: ScriptedUpstream, infinity: InfinityServer) -> Forward:
    """Sends what reaches the scripted upstream to Infinity, and its answer back."""

    async def forward(call: Call) -> web.Response:
        headers = {name: call.headers[name] for name in ("Authorization", "Content-Type")}
        async with client.session.post(infinity.base_url + "/embeddings", data=call.body, headers=headers) as answer:
            return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

    upstream.reply = forward
    return forward


def body(given: Any, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": given} | fields


async def ask_directly(direct: Client, asked: dict[str, Any], **headers: str) -> UpstreamResponse:
    return await direct.post(asked, target="/embeddings", **headers)


async def calls(session: ClientSession, infinity: InfinityServer) -> int:
    """How many embeddings requests Infinity has answered, by its own count."""
    async with session.get(infinity.base_url + "/metrics") as answer:
        families = list(text_string_to_metric_families(await answer.text()))
    return sum(
        int(sample.value)
        for family in families
        for sample in family.samples
        if sample.name == "http_requests_total" and sample.labels["handler"] == "/embeddings"
    )


@pytest.mark.parametrize("fields", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}], ids=str)
@pytest.mark.parametrize("target", ["/embeddings", "/v1/embeddings"])
async def test_a_miss_then_a_hit_with_the_bits_of_infinity_itself(
    client: Client, direct: Client, infinity: InfinityServer, fields: dict[str, str], target: str
) -> None:
    asked = body(TEXTS, **fields)
    expected = await ask_directly(direct, asked)
    before = await calls(client.session, infinity)
    answers = [await client.post(asked, target=target) for _ in range(2)]
    assert [answer.cache for answer in answers] == ["MISS", "HIT"]
    assert [answer.embeddings for answer in answers] == [expected.embeddings] * 2
    assert [answer.json["model"] for answer in answers] == [MODEL] * 2
    assert answers[0].json["usage"] == expected.json["usage"]
    assert await calls(client.session, infinity) == before + 1


async def test_one_entry_serves_every_encoding(client: Client, direct: Client) -> None:
    await client.post(body(TEXTS))
    for fields in ({"encoding_format": "base64"}, {"encoding_format": "float"}, {"user": "somebody"}):
        answer = await client.post(body(TEXTS, **fields))
        assert answer.cache == "HIT"
        assert answer.embeddings == (await ask_directly(direct, body(TEXTS, **fields))).embeddings


@pytest.mark.parametrize("name", EMBEDS)
async def test_a_client_misses_then_hits(
    client: Client, infinity: InfinityServer, start_client: StartClient, name: str
) -> None:
    process = start_client(EMBEDS[name])
    direct = await process.embed(infinity.base_url, MODEL, TEXTS)
    assert [len(vector) for vector in direct["vectors"]] == [DIMENSIONS] * len(TEXTS)
    before = await calls(client.session, infinity)
    # infinity_client is given the address that Infinity has no /v1 in; each way leads to the same.
    for base_url in (client.proxy.base_url, client.origin):
        assert await process.embed(base_url, MODEL, TEXTS) == direct
    assert await calls(client.session, infinity) == before + 1
    for outcome in ("miss", "hit"):
        assert await client.metric("embedding_proxy_requests_total", outcome=outcome) == 1


@pytest.mark.parametrize("name", REFUSED)
async def test_a_client_is_refused_as_by_infinity_itself(
    client: Client, infinity: InfinityServer, start_client: StartClient, name: str
) -> None:
    process = start_client(REFUSED[name])
    direct = await process.embed(infinity.base_url, MODEL, TEXTS)
    assert direct == {"error": {"status": 422, "type": "UnprocessableEntityError"}}
    assert await process.embed(client.proxy.base_url, MODEL, TEXTS) == direct


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(body([[101, 102]]), id="token lists"),
        pytest.param(body([101, 102]), id="tokens"),
        pytest.param(body([]), id="no items"),
        pytest.param(body(["good", None]), id="an item that is null"),
        pytest.param(body("x", encoding_format=None), id="encoding null"),
        pytest.param(body("x", encoding_format="int8"), id="encoding unknown"),
        pytest.param(body("x", dimensions=None), id="dimensions null"),
        pytest.param(body("x", dimensions=DIMENSIONS + 1), id="dimensions too many"),
        pytest.param(body(TOO_LONG), id="text too long"),
        pytest.param(body(["good", TOO_LONG, "good too"]), id="one text of a batch too long"),
        pytest.param(body("data:image/png;base64,AAAA", modality="image"), id="image for a text model"),
        pytest.param(body("x", modality="smell"), id="modality unknown"),
    ],
)
async def test_a_refusal_is_infinitys_own_to_the_byte(client: Client, direct: Client, asked: dict[str, Any]) -> None:
    expected = await ask_directly(direct, asked)
    assert expected.status in {400, 422}
    for _ in range(2):
        answer = await client.post(asked)
        assert (answer.status, answer.body) == (expected.status, expected.body)


async def test_a_refusal_names_the_place_in_the_clients_own_list(client: Client, direct: Client) -> None:
    await client.post(body(["cached"]))
    asked = body(["cached", TOO_LONG])
    assert (await client.post(asked)).body == (await ask_directly(direct, asked)).body


@pytest.mark.parametrize("given", ["", ["", "good"], " ", "\n\n"], ids=repr)
async def test_texts_without_words_are_answered_as_by_infinity(client: Client, direct: Client, given: Any) -> None:
    expected = await ask_directly(direct, body(given))
    assert expected.status == 200
    for _ in range(2):
        assert (await client.post(body(given))).embeddings == expected.embeddings


async def test_a_text_longer_than_the_model_reads_is_cached(client: Client, direct: Client) -> None:
    asked = body("word " * 5000)
    answers = [await client.post(asked) for _ in range(2)]
    assert [answer.cache for answer in answers] == ["MISS", "HIT"]
    assert [answer.embeddings for answer in answers] == [(await ask_directly(direct, asked)).embeddings] * 2


async def test_dimensions_of_zero_are_all_of_them(client: Client) -> None:
    absent = await client.post(body(TEXTS))
    answers = [await client.post(body(TEXTS, dimensions=0, modality="text")) for _ in range(2)]
    assert [answer.cache for answer in answers] == ["MISS", "HIT"]
    assert [answer.embeddings for answer in answers] == [absent.embeddings] * 2


async def test_fewer_dimensions_are_other_entries(client: Client, direct: Client) -> None:
    await client.post(body(TEXTS))
    answers = [await client.post(body(TEXTS, dimensions=64)) for _ in range(2)]
    assert [answer.cache for answer in answers] == ["MISS", "HIT"]
    assert [answer.embeddings for answer in answers] == [
        (await ask_directly(direct, body(TEXTS, dimensions=64))).embeddings
    ] * 2


async def test_a_new_text_between_cached_ones(client: Client, infinity: InfinityServer) -> None:
    known = await client.post(body([TEXTS[0], TEXTS[2]]))
    before = await calls(client.session, infinity)
    answer = await client.post(body(TEXTS))
    assert answer.cache == "PARTIAL"
    assert [answer.embeddings[0], answer.embeddings[2]] == known.embeddings
    assert await calls(client.session, infinity) == before + 1


async def test_a_key_that_infinity_refuses_gets_no_entries(client: Client, direct: Client) -> None:
    asked = body(TEXTS)
    await client.post(asked)
    expected = await direct.post(asked, target="/embeddings", key="Bearer of somebody else")
    answer = await client.post(asked, key="Bearer of somebody else")
    assert (answer.status, answer.body) == (expected.status, expected.body) == (401, b'{"detail":"Unauthorized"}')
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert (await client.post(asked)).cache == "HIT"


@pytest.mark.parametrize("target", ["/models", "/v1/models"])
async def test_its_other_routes_pass_through(client: Client, target: str) -> None:
    answer = await client.send("GET", target, headers={"Authorization": f"Bearer {KEY}"})
    assert [model["id"] for model in answer.json["data"]] == [MODEL]


async def test_a_hundred_at_once_share_calls_and_each_gets_its_own_vector(
    client: Client, direct: Client, infinity: InfinityServer
) -> None:
    texts = [f"the text with the number {number}" for number in range(100)]
    before = await calls(client.session, infinity)
    answers = await asyncio.gather(*(client.post(body(text)) for text in texts))
    assert {answer.cache for answer in answers} == {"MISS"}
    assert await calls(client.session, infinity) - before < len(texts) / 2
    expected = (await ask_directly(direct, body(texts))).vectors
    np.testing.assert_allclose([answer.vectors[0] for answer in answers], expected, atol=_TOLERANCE, rtol=0)
    again = await asyncio.gather(*(client.post(body(text)) for text in texts))
    assert {answer.cache for answer in again} == {"HIT"}
    assert [answer.embeddings for answer in again] == [answer.embeddings for answer in answers]


async def test_a_hundred_who_ask_the_same_at_once_cost_one_call(client: Client, infinity: InfinityServer) -> None:
    before = await calls(client.session, infinity)
    answers = await asyncio.gather(*(client.post(body(TEXTS)) for _ in range(100)))
    assert await calls(client.session, infinity) == before + 1
    assert len({orjson.dumps(answer.embeddings) for answer in answers}) == 1


async def test_who_travels_with_a_refused_text_gets_a_vector_and_does_not_see_it(
    start_proxy: StartProxy, upstream: ScriptedUpstream, direct: Client, hop: Forward
) -> None:
    """Infinity answers 422 to a batch with one text that is too long, and repeats all of its texts in the answer."""
    through_hop = await start_proxy(provider="infinity", batch_window_s=60.0)
    texts = ["good 1", TOO_LONG, "good 2"]
    asks: list[Ask] = [(body(text), {}) for text in texts]
    answers = await behind_a_first(through_hop, upstream, asks, hop)
    merged = [call.json["input"] for call in upstream.calls if type(call.json["input"]) is list]
    assert [sorted(together) for together in merged] == [sorted(texts)]  # a large body may arrive last
    assert [answer.status for answer in answers] == [200, 422, 200]
    assert answers[1].body == (await ask_directly(direct, body(TOO_LONG))).body
    for answer, text in zip(answers, texts, strict=True):
        if answer.status == 200:
            assert answer.embeddings == (await ask_directly(direct, body(text))).embeddings


async def test_a_null_that_infinity_refuses_costs_no_one_else_a_vector(
    start_proxy: StartProxy, upstream: ScriptedUpstream, hop: Forward
) -> None:
    through_hop = await start_proxy(provider="infinity", batch_window_s=60.0)
    asks: list[Ask] = [(body("1"), {}), (body("2", encoding_format=None), {}), (body("3"), {})]
    answers = await behind_a_first(through_hop, upstream, asks, hop)
    assert [answers[0].status, answers[2].status] == [200, 200]
    assert answers[1].status in {200, 422}  # with others that leave the field out it may fare better than alone
