"""Each provider as it documents itself, and the proxy in front of it: ``make test-providers`` prints the table."""

import copy
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pytest
from aiohttp import web

from proxy.cli import banner
from proxy.protocol.headers import HOP_BY_HOP
from tests.conftest import StartProxy
from tests.support.client import Client, UpstreamResponse
from tests.support.emulators import EMULATORS
from tests.support.emulators.base import Emulator, Json
from tests.support.emulators.gateways import NemoRouter
from tests.support.emulators.hosted import Azure, Nvidia, OpenAI
from tests.support.emulators.servers import Infinity
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.scripted import Call, ScriptedUpstream
from tests.support.settings import settings_for

_WRITTEN_ANEW = HOP_BY_HOP | {"date", "server", "content-length"}


@dataclass
class Stage:
    """A provider's emulator, the proxy in front of it, and a client that can ask either."""

    emulator: Emulator
    upstream: ScriptedUpstream
    client: Client

    async def ask(self, body: bytes | Json, *, target: str | None = None, **headers: str) -> UpstreamResponse:
        fields = dict(self.emulator.credentials) | headers
        return await self.client.post(body, target=target or self.emulator.client_target, key=None, **fields)

    async def ask_directly(self, body: bytes | Json, *, target: str | None = None, **headers: str) -> UpstreamResponse:
        """What the provider itself answers; it does not count as a call."""
        direct, calls = copy.copy(self.client), self.upstream.calls.copy()
        direct.origin = self.upstream.base_url.removesuffix(self.emulator.base)
        fields = dict(self.emulator.credentials) | headers
        answer = await direct.post(body, target=target or self.emulator.target, key=None, **fields)
        self.upstream.calls[:] = calls
        return answer

    def body(self, given: Any, **fields: Any) -> Json:
        """A request that this provider takes."""
        emulator = self.emulator
        if isinstance(given, str) and not emulator.takes_text:
            given = [given]
        model = emulator.models[0] if emulator.models else "m"
        return {"model": model, "input": given, **emulator.needed} | fields

    def sizable(self, given: Any) -> Json:
        """The same of a model that has several lengths, if there is one."""
        return self.body(given) | ({"model": self.emulator.length_model} if self.emulator.length_model else {})


@pytest.fixture
async def upstream(provider: str) -> AsyncIterator[ScriptedUpstream]:
    emulator = EMULATORS[provider]
    async with ScriptedUpstream(reply=emulator.answer).serving() as upstream:
        upstream.base_url = upstream.base_url.removesuffix("/v1") + emulator.base
        yield upstream


@pytest.fixture
async def stage(provider: str, upstream: ScriptedUpstream, start_proxy: StartProxy) -> Stage:
    return Stage(EMULATORS[provider], upstream, await start_proxy(provider=provider))


@pytest.fixture(autouse=True)
def cell(record_property: Callable[[str, object], None], provider: str, column: str) -> None:
    record_property("matrix", (provider, column))


def cells(column: str, *providers: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("provider", "column"), [pytest.param(name, column, id=f"{name}-{column}") for name in providers or EMULATORS]
    )


def is_relayed(relayed: UpstreamResponse, direct: UpstreamResponse) -> bool:
    """Whether it is the provider's own answer to the byte, and all that it said in headers is still there."""
    told = [(name, value) for name, value in direct.headers.items() if name.lower() not in _WRITTEN_ANEW]
    return (relayed.status, relayed.body) == (direct.status, direct.body) and all(
        value in relayed.headers.getall(name, ()) for name, value in told
    )


def embeddings_text(answer: UpstreamResponse) -> bytes:
    return answer.body.split(b'"usage"')[0]


def is_well_formed(answer: UpstreamResponse, items: int, model: str) -> bool:
    said = answer.json
    usage = said["usage"]
    return (
        (said["object"], said["model"]) == ("list", model)
        and [(datum["object"], datum["index"]) for datum in said["data"]] == [("embedding", i) for i in range(items)]
        and all(type(usage[name]) is int for name in ("prompt_tokens", "total_tokens"))
    )


# --- what is good


def has(emulator: Emulator, column: str) -> bool:
    """Whether there is such a request, by the provider's documentation."""
    match column:
        case "tokens":
            return emulator.takes_tokens
        case "dimensions":
            return emulator.length_field is not None
    return True


def question(stage: Stage, column: str) -> Json:
    emulator = stage.emulator
    match column:
        case "single":
            return stage.body("x")
        case "tokens":
            return stage.body([[1, 2, 3], [4]])
        case "dimensions":
            return stage.sizable(["a", "b"]) | {str(emulator.length_field): emulator.length}
        case "base64":
            return stage.body(["a", "b"], **{emulator.encoding_field: "base64"})
        case "float" if emulator.takes_float:
            return stage.body(["a", "b"], **{emulator.encoding_field: "float"})
    return stage.body(["a", "b", "c"])


@pytest.mark.parametrize(
    ("provider", "column"),
    [
        pytest.param(name, column, id=f"{name}-{column}")
        for column in ("single", "batch", "tokens", "dimensions", "base64", "float")
        for name, emulator in EMULATORS.items()
        if has(emulator, column)
    ],
)
async def test_repeated_request_is_fetched_once_and_matches_the_provider(stage: Stage, column: str) -> None:
    body = question(stage, column)
    direct = await stage.ask_directly(body)
    miss, hit = await stage.ask(body), await stage.ask(body)
    assert (direct.status, miss.status, miss.cache, hit.cache) == (200, 200, "MISS", "HIT")
    assert [(call.target, call.json) for call in stage.upstream.calls] == [(stage.emulator.target, body)]
    assert embeddings_text(miss) == embeddings_text(hit)
    items = len(body["input"]) if isinstance(body["input"], list) else 1
    model = str(direct.json.get("model", body["model"]))
    assert is_well_formed(miss, items, model)
    assert is_well_formed(hit, items, model)
    if column == "base64":
        assert all(isinstance(embedding, str) for embedding in hit.embeddings)
        assert hit.vectors == np.array(direct.vectors, np.float32).tolist()
    else:
        assert hit.vectors == direct.vectors
    if column == "dimensions":
        assert {len(vector) for vector in hit.vectors} == {stage.emulator.length}
    assert stage.emulator.headers.items() <= miss.headers.items()


@cells("banner")
async def test_banner_command_is_a_miss_then_a_hit(stage: Stage, upstream: ScriptedUpstream) -> None:
    emulator = stage.emulator
    settings = settings_for(upstream, provider=emulator.name)
    text = banner.text_of(settings, stage.client.proxy.base_url, stage.client.proxy.admin_url)
    pasted = re.search(r'embeddings -H "([^:]+): [^"]+" .*?-d \'(.*?)\'', text, re.DOTALL)
    assert pasted is not None
    assert pasted[1] in emulator.credentials or not emulator.credentials
    body = pasted[2].replace("MODEL", str(stage.body("x")["model"])).encode()
    target = emulator.target if emulator.name == "azure" else "/v1/embeddings"
    answers = [await stage.ask(body, target=target) for _ in range(2)]
    assert [(answer.status, answer.cache) for answer in answers] == [(200, "MISS"), (200, "HIT")]


@cells("partial")
async def test_only_missing_items_are_fetched(stage: Stage) -> None:
    await stage.ask(stage.body(["a", "c"]))
    body = stage.body(["a", "b", "c"])
    answer = await stage.ask(body)
    assert answer.cache == "PARTIAL"
    assert stage.upstream.calls[-1].json == body | {"input": ["b"]}
    assert answer.vectors == (await stage.ask_directly(body)).vectors


@cells("encodings")
async def test_one_entry_serves_every_encoding(stage: Stage) -> None:
    body = stage.body(["a", "b"])
    direct = await stage.ask_directly(body)
    await stage.ask(body)
    as_base64 = await stage.ask(body | {stage.emulator.encoding_field: "base64"})
    again = await stage.ask(body)
    assert [as_base64.cache, again.cache] == ["HIT", "HIT"]
    assert all(isinstance(embedding, str) for embedding in as_base64.embeddings)
    assert as_base64.vectors == np.array(direct.vectors, np.float32).tolist()
    assert again.vectors == direct.vectors


@cells("path")
async def test_native_path_of_the_provider_is_the_same_route(stage: Stage) -> None:
    body = stage.body("x")
    await stage.ask(body)
    assert (await stage.ask(body, target=stage.emulator.target)).cache == "HIT"


@cells("fields")
async def test_only_vector_affecting_fields_are_keyed(stage: Stage) -> None:
    body, emulator = stage.sizable(["a", "b"]), stage.emulator
    plain = await stage.ask(body)
    acting = {name: value for name, (_, value) in emulator.acting.items()}
    for name, value in (acting | ({emulator.length_field: emulator.length} if emulator.length_field else {})).items():
        changed = body | {name: value}
        direct = await stage.ask_directly(changed)
        miss, hit = await stage.ask(changed), await stage.ask(changed)
        assert (name, direct.status, miss.cache, hit.cache) == (name, 200, "MISS", "HIT")
        assert hit.vectors == direct.vectors != plain.vectors
    for name, value in emulator.idle.items():
        answer = await stage.ask(body | {name: value})
        assert (name, answer.cache) == (name, "HIT")
        assert answer.vectors == plain.vectors == (await stage.ask_directly(body | {name: value})).vectors


@cells("split", *(name for name, emulator in EMULATORS.items() if emulator.max_items < OpenAI.max_items))
async def test_items_over_the_limit_are_split(stage: Stage) -> None:
    limit = stage.emulator.max_items
    texts = [f"text {i}" for i in range(limit + 8)]
    refused = await stage.ask_directly(stage.body(texts))
    parts = [await stage.ask_directly(stage.body(part)) for part in (texts[:limit], texts[limit:])]
    answer = await stage.ask(stage.body(texts))
    assert refused.status in {400, 422}
    assert answer.status == 200
    assert answer.vectors == [vector for part in parts for vector in part.vectors]
    assert sorted(len(call.items) for call in stage.upstream.calls) == [8, limit]


# --- what is not


@pytest.mark.parametrize(
    ("provider", "column"),
    [
        pytest.param(name, str(status), id=f"{name}-{status}")
        for status in (400, 401, 402, 404, 429, 500, 503, 529)
        for name in EMULATORS
    ],
)
@pytest.mark.relays_refusals
async def test_error_is_relayed_unchanged_and_not_stored(stage: Stage, column: str) -> None:
    body = stage.body(["a", "b"])
    stage.upstream.reply = stage.emulator.failing(int(column))
    direct = await stage.ask_directly(body)
    relayed = await stage.ask(body)
    assert direct.status == int(column)
    assert is_relayed(relayed, direct)
    assert len(stage.upstream.calls) == 1
    stage.upstream.reply = stage.emulator.answer
    good = await stage.ask(body)
    assert (good.status, good.cache) == (200, "MISS")
    assert good.vectors == (await stage.ask_directly(body)).vectors


@pytest.mark.relays_refusals  # two providers refuse with a 200
@cells("malformed")
async def test_invalid_200_is_relayed_unchanged_and_not_stored(stage: Stage) -> None:
    body = stage.body(["a", "b"])
    stage.upstream.reply = stage.emulator.malformed
    direct = await stage.ask_directly(body)
    assert is_relayed(await stage.ask(body), direct)
    stage.upstream.reply = stage.emulator.answer
    good = await stage.ask(body)
    # One vector of NaN leaves the other as good as any.
    assert (good.status, good.cache) == (200, "PARTIAL" if stage.emulator.name == "tei" else "MISS")
    assert good.vectors == (await stage.ask_directly(body)).vectors


ODDITIES: dict[str, Json] = {
    "unknown model": {"model": "no-such-model"},
    "no model": {"model": None},
    "unknown field": {"foo": 1},
    "user": {"user": "u"},
    "no items": {"input": []},
    "empty item": {"input": ["a", ""]},
    "white space": {"input": [" a", "a\n", " "]},
    "one token list": {"input": [1, 2, 3]},
    "token lists": {"input": [[1, 2], [3]]},
    "texts and tokens": {"input": ["a", [1, 2]]},
    "text among tokens": {"input": [1, "a", 2]},
    "object": {"input": {"text": "a"}},
    "objects": {"input": [{"text": "a"}, {"text": "b"}]},
    "other encoding": {"encoding_format": "hex"},
    "null encoding": {"encoding_format": None},
    "base64 by OpenAI's name": {"encoding_format": "base64"},
    "float by OpenAI's name": {"encoding_format": "float"},
    "null dimensions": {"dimensions": None},
    "dimensions": {"dimensions": 8},
    "no dimensions": {"dimensions": 0},
    "too many dimensions": {"dimensions": 100_000},
    "another's field": {"input_type": "query", "task": "text-matching"},
}


@cells("oddities")
async def test_client_gets_the_providers_own_verdict(stage: Stage) -> None:
    await stage.ask(stage.body(["a", "b"]))
    for name, change in ODDITIES.items():
        body = stage.body(["a", "b"]) | change
        direct = await stage.ask_directly(body)
        for _ in range(2):
            answer = await stage.ask(body)
            assert (name, answer.status) == (name, direct.status)
            if direct.status != 200 or answer.cache == "BYPASS":
                assert is_relayed(answer, direct), name
            else:
                told = np.array(answer.vectors, np.float32), np.array(direct.vectors, np.float32)
                assert np.array_equal(*told), name


ITEMS: list[Any] = ["a", "b", "c", " a", "", [1, 2], [3], 7, {"text": "a"}, {"image": "data:image/png;base64,AA"}, None]
INPUTS: list[Any] = ["a", "b", [1, 2, 3], [], {"text": "a"}, None]
VALUES: dict[str, list[Any]] = {
    "encoding_format": ["float", "base64", None, "hex", ["float"]],
    "embedding_type": ["float", "base64", "binary", "ubinary", "int8", None, ["float", "base64"]],
    "output_dtype": ["float", "int8", "uint8", "binary", "ubinary", None, "int4"],
    "dimensions": [8, 16, 4, 0, None, 100_000, "8", 8.0],
    "output_dimension": [256, 512, 8, None],
    "late_chunking": [True, False, None, 0],
    "return_multivector": [True, False, None],
    "truncate": [True, False, "END", "NONE", None],
    "truncation": [True, False, None],
    "normalized": [True, False, None],
    "normalize": [True, False],
    "task": ["retrieval.query", "text-matching", None, ["a", "b"]],
    "input_type": ["query", "passage", "document", None],
    "modality": ["text", "image", ["text", "image"]],
    "provider": [{"order": ["a"]}, {"order": ["b"]}, None, []],
    "prompt_template": ["{text}", None],
    "embd_normalize": [-1, 0, 2],
    "embed_dtype": ["float32", "float16"],
    "endianness": ["native", "big"],
    "add_special_tokens": [True, False],
    "truncate_prompt_tokens": [1, -1],
    "metadata": [{"a": 1}],
    "user": ["u", None],
    "request_id": ["r"],
    "foo": [1],
}
REQUESTS = 1_000 if IS_SLOW_PROFILE else 12


def any_body(rng: random.Random, emulator: Emulator) -> Json:
    """A request of whatever fields, of which this provider documents some."""
    given = rng.choice([rng.choice(INPUTS), rng.choices(["a", "b", "c", "d"], k=3), rng.choices(ITEMS, k=2)])
    own = {*emulator.acting, *emulator.idle, *emulator.special, emulator.encoding_field, emulator.length_field}
    likely = [name for name in VALUES if name in own]
    names = rng.sample(likely, min(len(likely), rng.randrange(3)))
    if rng.random() < 0.3:
        names.append(rng.choice(list(VALUES)))
    model = rng.choice([*(emulator.models or ("m",)), *emulator.fused, *filter(None, [emulator.length_model])])
    body: Json = {"model": model, "input": given, **emulator.needed}
    return body | {name: rng.choice(VALUES[name]) for name in names}


@cells("any request")
async def test_any_request_gets_the_providers_response(stage: Stage, provider: str) -> None:
    rng = random.Random(provider)
    seen: dict[str, int] = {}
    for _ in range(REQUESTS):
        body = any_body(rng, stage.emulator)
        direct, answer = await stage.ask_directly(body), await stage.ask(body)
        assert answer.status == direct.status, (body, direct.body, answer.body)
        seen[answer.cache] = seen.get(answer.cache, 0) + 1
        if direct.status != 200 or answer.cache == "BYPASS":
            assert is_relayed(answer, direct), body
        elif "embedding" not in direct.json["data"][0]:  # Jina's several vectors of an item
            assert answer.json["data"] == direct.json["data"], body
        elif any(isinstance(embedding, str) for embedding in [*answer.embeddings, *direct.embeddings]):
            assert answer.embeddings == direct.embeddings or np.array_equal(
                np.array(answer.vectors, np.float32), np.array(direct.vectors, np.float32)
            ), body
        else:
            assert orjson.dumps(answer.embeddings) == orjson.dumps(direct.embeddings), body
    assert seen["MISS"] > 0


@cells("bad key", *(name for name in EMULATORS if name != "ollama"))
async def test_refused_key_gets_no_cached_vector(stage: Stage) -> None:
    body = stage.body(["a", "b"])
    await stage.ask(body)
    wrong = dict.fromkeys(stage.emulator.credentials, "Bearer sk-wrong")
    direct = await stage.ask_directly(body, **wrong)
    assert direct.status in {400, 401}
    assert is_relayed(await stage.ask(body, **wrong), direct)
    assert (await stage.ask(body)).cache == "HIT"


# --- what only one of them has


async def assert_cached(stage: Stage, body: Json) -> UpstreamResponse:
    """That it is stored, and served as the provider itself would have answered; the hit."""
    direct = await stage.ask_directly(body)
    miss, hit = await stage.ask(body), await stage.ask(body)
    assert (direct.status, miss.cache, hit.cache) == (200, "MISS", "HIT")
    assert miss.embeddings == hit.embeddings == direct.embeddings
    return hit


async def assert_relayed(
    stage: Stage, body: Json, *, target: str | None = None, cache: str | None = "BYPASS"
) -> UpstreamResponse:
    """That each time it goes up to the byte, and comes back so; the answer."""
    written = orjson.dumps(body)
    direct = await stage.ask_directly(written, target=target)
    for _ in range(2):
        calls = len(stage.upstream.calls)
        answer = await stage.ask(written, target=target)
        assert is_relayed(answer, direct)
        assert answer.headers.get("X-Cache") == cache
        assert [call.body for call in stage.upstream.calls[calls:]] == [written]
    return answer


@cells("own", "jina")
async def test_late_chunking_is_cached_as_a_whole(stage: Stage) -> None:
    body = stage.body(["a", "b"])
    plain = await stage.ask(body)
    answer = await assert_cached(stage, body | {"late_chunking": True})
    assert (await stage.ask(body | {"input": ["a"], "late_chunking": True})).cache == "MISS"
    assert answer.vectors != plain.vectors
    assert (await stage.ask(body)).vectors == plain.vectors


@cells("own", "jina")
async def test_several_vectors_per_item_are_not_cached(stage: Stage) -> None:
    body = stage.body(["a"], model="jina-embeddings-v4", return_multivector=True)
    assert "embeddings" in (await assert_relayed(stage, body, cache="MISS")).json["data"][0]


@cells("own", "jina")
async def test_jina_embedding_types(stage: Stage) -> None:
    body = stage.body(["a", "b"])
    await stage.ask(body)
    for kind in ("binary", "ubinary"):
        hit = await assert_cached(stage, body | {"embedding_type": kind})
        assert {type(number) for numbers in hit.embeddings for number in numbers} == {float}
        assert all(number.is_integer() for numbers in hit.embeddings for number in numbers)
    await assert_relayed(stage, body | {"embedding_type": ["float", "base64"]})


@cells("own", "jina")
async def test_jina_accepts_either_name_of_its_field_but_not_both(stage: Stage) -> None:
    body = stage.body(["a", "b"])
    await stage.ask(body)
    by_name = [await stage.ask(body | {name: "base64"}) for name in ("embedding_type", "encoding_format")]
    assert [answer.cache for answer in by_name] == ["HIT", "HIT"]
    assert by_name[0].body == by_name[1].body
    await assert_relayed(stage, body | {"embedding_type": "float", "encoding_format": "base64"})


@cells("own", "jina")
@pytest.mark.parametrize("image", ["data:image/png;base64,AA", "iVBORw0KGgo="])
async def test_jina_inline_images_are_cached(stage: Stage, image: str) -> None:
    hit = await assert_cached(stage, stage.body([{"image": image}, {"text": "a"}]))
    assert (await stage.ask(stage.body([image, "a"]))).vectors[0] != hit.vectors[0]
    await assert_relayed(stage, stage.body([{"image": "https://example.com/a.png"}]))
    await assert_cached(stage, stage.body(["a", {"image": image}]))


@cells("own", "voyage")
@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "base64"}], ids=["numbers", "base64"])
async def test_voyage_output_types_match_its_bytes(stage: Stage, encoding: Json) -> None:
    plain = await stage.ask(stage.body(["a", "b"]))
    for dtype in ("int8", "uint8", "binary", "ubinary"):
        body = stage.body(["a", "b"], output_dtype=dtype)
        hit = await assert_cached(stage, body | encoding)
        assert hit.embeddings != plain.embeddings
        for other in ({}, {"encoding_format": "base64"}):
            answer = await stage.ask(body | other)
            assert answer.cache == "HIT"
            assert answer.embeddings == (await stage.ask_directly(body | other)).embeddings
    fewer = stage.body(["a", "b"], output_dtype="binary", output_dimension=256)
    assert {len(numbers) for numbers in (await assert_cached(stage, fewer)).embeddings} == {256 // 8}


@cells("own", "mistral")
async def test_mistral_output_types(stage: Stage) -> None:
    await stage.ask(stage.body(["a", "b"]))
    assert (await stage.ask(stage.body(["a", "b"], output_dtype="float"))).cache == "HIT"
    for dtype in ("int8", "uint8", "binary", "ubinary"):
        await assert_cached(stage, stage.body(["a", "b"], output_dtype=dtype))


@cells("own", "mistral")
async def test_mistral_responses_have_an_id(stage: Stage) -> None:
    miss, hit, again = [await stage.ask(stage.body("a")) for _ in range(3)]
    assert miss.json["id"] == (await stage.ask_directly(stage.body("a"))).json["id"]
    assert (hit.cache, again.cache) == ("HIT", "HIT")
    assert len({miss.json["id"], hit.json["id"], again.json["id"]}) == 3
    assert (await stage.ask(stage.body(["a", "b"]))).json["id"]


@cells("own", "openrouter", "nemorouter", "tei", "ollama")
async def test_floats_from_a_base64_entry_match_the_providers_floats(stage: Stage) -> None:
    body = stage.body(["a", "b"])
    await stage.ask(body | {"encoding_format": "base64"})
    answer = await stage.ask(body)
    assert (answer.cache, answer.vectors) == ("HIT", (await stage.ask_directly(body)).vectors)


@cells("own", "mistral")
async def test_calls_keep_the_mistral_token_limit(stage: Stage) -> None:
    texts = [f"{i} " + "word " * 2000 for i in range(12)]
    refused = await stage.ask_directly(stage.body(texts))
    answer = await stage.ask(stage.body(texts))
    assert (refused.status, answer.status) == (400, 200)
    assert len(stage.upstream.calls) > 1


@cells("own", "nvidia")
async def test_nvidia_embedding_types(stage: Stage) -> None:
    await stage.ask(stage.body(["a", "b"]))
    for kind in ("int8", "uint8", "binary", "ubinary"):
        await assert_cached(stage, stage.body(["a", "b"], embedding_type=kind))


@cells("own", "nvidia")
async def test_nvidia_queries_and_passages_have_separate_entries(stage: Stage) -> None:
    texts = {"input": ["a", "b"]}
    by_field = [await assert_cached(stage, stage.body(["a", "b"], input_type=kind)) for kind in ("query", "passage")]
    by_name = [
        await assert_cached(stage, texts | {"model": f"nvidia/nv-embedqa-e5-v5-{kind}"})
        for kind in ("query", "passage")
    ]
    assert by_field[0].vectors == by_name[0].vectors != by_field[1].vectors == by_name[1].vectors


@cells("own", "nvidia")
async def test_positional_modality_list_is_not_split(stage: Stage) -> None:
    image = "data:image/png;base64,AA"
    await stage.ask(stage.body([image]))
    await assert_cached(stage, stage.body([image], modality="image"))
    await assert_cached(stage, stage.body(["a", image], modality=["text", "image"]))
    assert (await stage.ask(stage.body(["a"], modality=["text", "image"]))).cache == "MISS"
    await assert_relayed(stage, stage.body(["a", image], modality=["text"]), cache="MISS")
    await assert_relayed(stage, stage.body(['<img src="data:image/png;asset_id,1" />']))


@cells("own", "nvidia")
async def test_202_is_relayed_and_not_stored(stage: Stage) -> None:
    stage.upstream.reply = Nvidia().pending
    await assert_relayed(stage, stage.body(["a"]), cache="MISS")
    stage.upstream.reply = stage.emulator.answer
    await assert_cached(stage, stage.body(["a"]))


@cells("own", "openrouter")
async def test_inline_content_parts_are_cached(stage: Stage) -> None:
    def item(url: str) -> Json:
        parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": url}}]
        return {"content": parts}

    images = [item("data:image/png;base64,AA"), item("data:image/png;base64,BB")]
    await assert_cached(stage, stage.body(images))
    assert (await stage.ask(stage.body(images[::-1]))).cache == "HIT"
    await assert_relayed(stage, stage.body([images[0], item("https://example.com/a.png")]))


@cells("own", "openrouter")
async def test_provider_object_is_keyed_by_its_content(stage: Stage) -> None:
    chosen = {"order": ["a", "b"], "zdr": True}
    hit = await assert_cached(stage, stage.body(["x"], provider=chosen))
    again = await stage.ask(stage.body(["x"], provider=dict(reversed(chosen.items()))))
    other = await assert_cached(stage, stage.body(["x"], provider=chosen | {"order": ["b", "a"]}))
    assert (again.cache, again.vectors) == ("HIT", hit.vectors)
    assert other.vectors != hit.vectors


@cells("own", "vllm")
async def test_vllm_own_encodings_are_relayed(stage: Stage) -> None:
    body = stage.body(["a", "b"], encoding_format="base64")
    await assert_cached(stage, body)
    for change in (
        {"embed_dtype": "float16"},
        {"endianness": "big"},
        {"encoding_format": "bytes"},
        {"encoding_format": "bytes", "embed_dtype": "float16"},
    ):
        await assert_relayed(stage, body | change)


@cells("own", "vllm")
async def test_conversation_is_cached_as_a_whole(stage: Stage) -> None:
    await assert_cached(stage, {"model": "bge", "messages": [{"role": "user", "content": "a"}]})


@cells("own", "vllm")
async def test_request_without_a_model_is_cached(stage: Stage) -> None:
    await assert_cached(stage, {"input": ["a", "b"]})


@cells("own", "azure")
async def test_deployments_are_keyed_by_path_and_model(stage: Stage) -> None:
    body = {"input": ["a"]}
    targets = [f"/openai/deployments/{name}/embeddings?api-version=2024-10-21" for name in ("small", "large")]
    by_path = [await stage.ask(body, target=target) for target in targets]
    hits = [await stage.ask(body, target=target) for target in targets]
    by_model = [await stage.ask(body | {"model": name}, target="/openai/v1/embeddings") for name in ("small", "large")]
    assert [answer.cache for answer in by_path + hits] == ["MISS", "MISS", "HIT", "HIT"]
    assert [answer.vectors for answer in by_path] == [answer.vectors for answer in by_model]
    assert by_path[0].vectors != by_path[1].vectors
    gone = "/openai/deployments/gone/embeddings?api-version=2024-10-21"
    assert is_relayed(await stage.ask(body, target=gone), await stage.ask_directly(body, target=gone))


@cells("own", "azure")
async def test_model_in_a_header_is_keyed(stage: Stage) -> None:
    def ask(model: str) -> Awaitable[UpstreamResponse]:
        return stage.ask({"input": ["a"]}, target="/openai/v1/embeddings", **{Azure.model_header: model})

    misses, hits = [[await ask(model) for model in ("small", "large")] for _ in range(2)]
    assert [answer.cache for answer in misses + hits] == ["MISS", "MISS", "HIT", "HIT"]
    assert misses[0].vectors == hits[0].vectors != hits[1].vectors == misses[1].vectors


@cells("own", "infinity")
async def test_late_interaction_models_are_not_cached(stage: Stage) -> None:
    stage.upstream.reply = Infinity().late_interaction
    for asked in ({}, {"model": "an-alias"}):
        await assert_relayed(stage, {"input": ["a"], "encoding_format": "base64"} | asked, cache="MISS")
    for model in ("vidore/colqwen2-v1.0", "jinaai/jina-colbert-v2", "michaelfeil/ColIdefics2"):
        await assert_relayed(stage, stage.body(["a"], model=model), cache="BYPASS")


@cells("own", "infinity")
async def test_image_url_is_not_cached(stage: Stage) -> None:
    image = "data:image/png;base64,AA"
    as_text = await stage.ask(stage.body([image]))
    assert (await assert_cached(stage, stage.body([image], modality="image"))).vectors != as_text.vectors
    await assert_cached(stage, stage.body(["https://example.com/a.png"]))
    await assert_relayed(stage, stage.body(["https://example.com/a.png"], modality="image"))


@cells("own", "gemini", "openrouter", "apertis")
async def test_one_vector_for_many_items_is_cached_by_whole_body(stage: Stage) -> None:
    model = next(iter(stage.emulator.fused))
    await assert_cached(stage, stage.body("a", model=model))
    answer = await assert_cached(stage, stage.body(["a", "b"], model=model))
    assert len(answer.embeddings) == 1
    assert (await stage.ask(stage.body(["b", "a"], model=model))).cache == "MISS"


@cells("own", "nemorouter")
async def test_vector_of_a_rewritten_text_is_not_stored(stage: Stage) -> None:
    await stage.ask(stage.body("a"))
    stage.upstream.reply = NemoRouter().redacting
    await assert_relayed(stage, stage.body("secret"), cache="MISS")
    body = stage.body(["a", "secret"])
    assert is_relayed(await stage.ask(body), await stage.ask_directly(body))
    stage.upstream.reply = stage.emulator.answer
    await assert_cached(stage, stage.body("secret"))


@cells("own", "nemorouter", "openai")
async def test_vector_of_a_gateway_fallback_model_is_not_stored(stage: Stage, provider: str) -> None:
    fell_back = {"openai": ("x-litellm-attempted-fallbacks", "2"), "nemorouter": ("x-nr-routing", "fallback:1")}
    did_not = {"openai": ("x-litellm-attempted-fallbacks", "0"), "nemorouter": ("x-nr-routing", "direct")}

    def telling(name: str, value: str) -> Callable[[Call], web.Response]:
        def reply(call: Call) -> web.Response:
            answer = stage.emulator.answer(call)
            answer.headers[name] = value
            return answer

        return reply

    stage.upstream.reply = telling(*fell_back[provider])
    await assert_relayed(stage, stage.body("a"), cache="MISS")
    stage.upstream.reply = telling(*did_not[provider])
    await assert_cached(stage, stage.body("a"))


@cells("own", "ollama", "llamacpp", "lmstudio")
async def test_native_api_is_passed_through(stage: Stage, provider: str) -> None:
    target, body = {
        "ollama": ("/api/embeddings", {"model": "all-minilm", "prompt": "a"}),
        "llamacpp": ("/embeddings", {"content": "a"}),
        "lmstudio": ("/api/v1/chat", {"input": "a"}),
    }[provider]
    await assert_relayed(stage, body, target=target, cache=None)
    assert {call.target for call in stage.upstream.calls} == {target}


@cells("own", "aigne", "llamacpp", "lmstudio", "ollama")
async def test_ignored_dimensions_are_keyed_as_requested(stage: Stage) -> None:
    wanted = 8 if stage.emulator.length_field is None else 2 * stage.emulator.native
    answer = await assert_cached(stage, stage.body(["a", "b"], dimensions=wanted))
    assert (await stage.ask(stage.body(["a", "b"], dimensions=wanted + 1))).cache == "MISS"
    assert {len(vector) for vector in answer.vectors} == {stage.emulator.native}


@cells("own", "apertis")
async def test_x_api_key_is_a_credential(stage: Stage) -> None:
    async def ask(**headers: str) -> UpstreamResponse:
        return await stage.client.post(stage.body("a"), key=None, **headers)

    answers = [await ask(x_api_key="sk-test"), await ask(x_api_key="sk-test"), await ask(), await ask(x_api_key="no")]
    assert [(answer.status, answer.cache) for answer in answers] == [
        (200, "MISS"),
        (200, "HIT"),
        (401, "MISS"),
        (401, "MISS"),
    ]


@cells("own", "fireworks")
async def test_selected_logits_are_not_an_embedding(stage: Stage) -> None:
    logits = await assert_cached(stage, stage.body(["a", "b"], return_logits=[1, 2, 3]))
    assert (await stage.ask(stage.body(["a", "b"]))).embeddings != logits.embeddings


@cells("own", "cohere")
async def test_native_api_field_is_not_neutral(stage: Stage) -> None:
    query = stage.body(["a", "b"], input_type="search_query")
    await stage.ask(stage.body(["a", "b"]))
    if (await stage.ask_directly(query)).status == 200:
        await assert_cached(stage, query)
    else:
        await assert_relayed(stage, query, cache="MISS")
