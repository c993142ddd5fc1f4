"""Each provider as it documents itself, and the proxy in front of it: ``make test-providers`` prints the table."""

import copy
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from proxy.headers import HOP_BY_HOP
from tests.client import Answer, Client
from tests.conftest import StartProxy
from tests.emulators import EMULATORS
from tests.emulators.base import Emulator, Json
from tests.emulators.hosted import OpenAI
from tests.scripted import ScriptedUpstream

_WRITTEN_ANEW = HOP_BY_HOP | {"date", "server", "content-length"}


@dataclass
class Stage:
    """A provider's emulator, the proxy in front of it, and a client that can ask either."""

    emulator: Emulator
    upstream: ScriptedUpstream
    client: Client

    async def ask(self, body: bytes | Json, *, target: str | None = None, **headers: str) -> Answer:
        fields = dict(self.emulator.credentials) | headers
        return await self.client.post(body, target=target or self.emulator.client_target, key=None, **fields)

    async def ask_directly(self, body: bytes | Json, *, target: str | None = None, **headers: str) -> Answer:
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
def cell(request: pytest.FixtureRequest, provider: str, column: str) -> None:
    request.node.user_properties.append(("matrix", (provider, column)))


def cells(column: str, *providers: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("provider", "column"), [pytest.param(name, column, id=f"{name}-{column}") for name in providers or EMULATORS]
    )


def is_relayed(relayed: Answer, direct: Answer) -> bool:
    """Whether it is the provider's own answer to the byte, and all that it said in headers is still there."""
    told = [(name, value) for name, value in direct.headers.items() if name.lower() not in _WRITTEN_ANEW]
    return (relayed.status, relayed.body) == (direct.status, direct.body) and all(
        value in relayed.headers.getall(name, ()) for name, value in told
    )


def embeddings_text(answer: Answer) -> bytes:
    return answer.body.split(b'"usage"')[0]


def is_well_formed(answer: Answer, items: int, model: str) -> bool:
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
            model = {"model": emulator.length_model} if emulator.length_model else {}
            return stage.body(["a", "b"], **model, **{str(emulator.length_field): emulator.length})
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
async def test_what_is_asked_twice_goes_up_once_and_is_what_the_provider_says(stage: Stage, column: str) -> None:
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


@cells("partial")
async def test_only_what_is_new_goes_up(stage: Stage) -> None:
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
async def test_the_providers_own_path_is_the_same_route(stage: Stage) -> None:
    body = stage.body("x")
    await stage.ask(body)
    assert (await stage.ask(body, target=stage.emulator.target)).cache == "HIT"


@cells("fields")
async def test_a_field_counts_where_it_changes_the_vector_and_nowhere_else(stage: Stage) -> None:
    body = stage.body(["a", "b"])
    plain = await stage.ask(body)
    for name, (_, value) in stage.emulator.acting.items():
        changed = body | {name: value}
        direct = await stage.ask_directly(changed)
        miss, hit = await stage.ask(changed), await stage.ask(changed)
        assert (name, direct.status, miss.cache, hit.cache) == (name, 200, "MISS", "HIT")
        assert hit.vectors == direct.vectors != plain.vectors
    for name, value in stage.emulator.idle.items():
        answer = await stage.ask(body | {name: value})
        assert (name, answer.cache) == (name, "HIT")
        assert answer.vectors == plain.vectors == (await stage.ask_directly(body | {name: value})).vectors


@cells("split", *(name for name, emulator in EMULATORS.items() if emulator.max_items < OpenAI.max_items))
async def test_more_items_than_it_takes_are_split(stage: Stage) -> None:
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
async def test_an_error_is_relayed_to_the_byte_and_nothing_is_stored(stage: Stage, column: str) -> None:
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


@cells("malformed")
async def test_a_bad_200_is_relayed_to_the_byte_and_nothing_is_stored(stage: Stage) -> None:
    body = stage.body(["a", "b"])
    stage.upstream.reply = stage.emulator.malformed
    direct = await stage.ask_directly(body)
    assert is_relayed(await stage.ask(body), direct)
    stage.upstream.reply = stage.emulator.answer
    good = await stage.ask(body)
    assert (good.status, good.cache) == (200, "MISS")
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
async def test_whatever_the_provider_makes_of_a_request_the_client_is_told(stage: Stage) -> None:
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


@cells("bad key", *(name for name in EMULATORS if name != "ollama"))
async def test_nobody_is_served_with_a_key_that_the_provider_refuses(stage: Stage) -> None:
    body = stage.body(["a", "b"])
    await stage.ask(body)
    wrong = dict.fromkeys(stage.emulator.credentials, "Bearer sk-wrong")
    direct = await stage.ask_directly(body, **wrong)
    assert direct.status in {400, 401}
    assert is_relayed(await stage.ask(body, **wrong), direct)
    assert (await stage.ask(body)).cache == "HIT"
