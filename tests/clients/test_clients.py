"""Real clients in front of a real proxy: in ``make test`` those that install quickly, in ``make test-clients`` all.

What a client sends, and what it does about an error, is pinned too: when a new version does otherwise, the proxy has
new requests to be tested with.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.client_process import ROOT, ClientProcess, WarmedProcess
from tests.support.scripted import Call, Reply, ScriptedUpstream, error_reply, vector

TEXTS = ["one", "deux à deux", " 三つ"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    name: str
    command: tuple[str, ...]
    fields: Mapping[str, object] = field(default_factory=dict)  # what its bodies have beside `model` and `input`
    # The header fields whose values differ from request to request, though the user asks the same.
    changing: frozenset[str] = frozenset()
    sends_tokens: bool = False
    sends_lists: bool = True
    retries: bool = True
    is_keyed_whole: bool = False  # what it sends is cached as a whole request, not item by item
    provider: str = "generic"  # whose client it is
    wants_id: bool = False  # in each answer
    errors: tuple[str, str, str] = ("BadRequestError", "AuthenticationError", "RateLimitError")  # 400, 401, 429

    def items(self, texts: list[str]) -> list[Any]:
        """The items it makes of texts."""
        return [list(text.encode()) for text in texts] if self.sends_tokens else texts


def python(module: str, *arguments: str, of: str = sys.executable) -> tuple[str, ...]:
    return (of, "-m", f"tests.clients.{module}", *arguments)


def node(module: str) -> tuple[str, ...]:
    return ("node", str(ROOT / f"tests/clients/{module}.mjs"))


BASE64 = {"encoding_format": "base64"}
FLOAT = {"encoding_format": "float"}
NULL = {"encoding_format": None}

QUICK = [
    Program(name="openai", command=python("openai_sync"), fields=BASE64),
    Program(name="openai async", command=python("openai_async"), fields=BASE64),
    Program(name="openai raw", command=python("openai_raw"), fields=BASE64),
    Program(name="openai raw, parsed", command=python("openai_parsed"), fields=BASE64),
    Program(name="openai, null", command=python("openai_null"), fields=NULL),
    Program(
        name="ragflow", command=python("ragflow_openai"), fields=FLOAT | {"drop_params": True}, is_keyed_whole=True
    ),
    Program(name="langchain, tokens", command=python("langchain_tokens"), fields=BASE64, sends_tokens=True),
    Program(name="langchain, text", command=python("langchain_text"), fields=BASE64),
    Program(name="haystack, text", command=python("haystack_text"), fields=FLOAT, sends_lists=False),
    Program(name="haystack, documents", command=python("haystack_documents"), fields=FLOAT),
    Program(name="curl", command=python("curl", "absent"), retries=False, errors=("Failed",) * 3),
    Program(name="curl, float", command=python("curl", "float"), fields=FLOAT, retries=False, errors=("Failed",) * 3),
]

# What each is installed into, and why there: tests/clients/requirements*.txt.
OLDER = str(ROOT / ".venv-clients/bin/python")
PINNED_LITELLM = str(ROOT / ".venv-clients-litellm/bin/python")
INFINITY = str(ROOT / ".venv-clients-infinity/bin/python")

MISTRAL = Program(
    name="mistral",
    command=python("mistral_sdk", of=OLDER),
    retries=False,
    provider="mistral",
    wants_id=True,
    errors=("SDKError",) * 3,
)

ALL = [
    *QUICK,
    Program(name="openai 2", command=python("openai_sync", of=OLDER), fields=BASE64),
    Program(name="llama-index", command=python("llama_index_openai", of=OLDER), fields=BASE64),
    Program(
        name="ddtrace-run",
        command=(str(ROOT / ".venv-clients/bin/ddtrace-run"), *python("ddtrace_openai", of=OLDER)),
        fields=BASE64,
        changing=frozenset(
            {"traceparent", "tracestate", "x-datadog-parent-id", "x-datadog-tags", "x-datadog-trace-id"}
        ),
    ),
    Program(name="litellm", command=python("litellm_client", of=OLDER)),
    Program(name="litellm 1.83", command=python("litellm_client", of=PINNED_LITELLM), fields=NULL),
    Program(name="chromadb", command=python("chromadb_openai", of=OLDER), fields=BASE64),
    Program(name="openai, node", command=node("openai_node"), fields=BASE64),
    Program(name="ai sdk", command=node("ai_sdk"), fields=FLOAT, errors=("AI_APICallError",) * 3),
    MISTRAL,
    replace(MISTRAL, name="mistral, node", command=node("mistral_node")),
    Program(
        name="infinity_client",
        command=python("infinity_rest", of=INFINITY),
        fields={"dimensions": 0, "modality": "text"},
        retries=False,
        provider="infinity",
        errors=("UnexpectedStatus",) * 3,
    ),
    Program(
        name="openrouter",
        command=node("openrouter"),
        retries=False,
        errors=("BadRequestResponseError", "UnauthorizedResponseError", "TooManyRequestsResponseError"),
    ),
]

CLIENTS = ALL if os.environ.get("CLIENTS") == "all" else QUICK

Fills = Callable[[str], None]


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda program: program.name)
def program(request: pytest.FixtureRequest) -> Program:
    chosen: Program = request.param
    return chosen


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmedProcess]:
    warmed = WarmedProcess(tmp_path_factory.mktemp("clients"))
    yield warmed
    warmed.kill()


@pytest.fixture(scope="module")
def process(
    program: Program, tmp_path_factory: pytest.TempPathFactory, warmed: WarmedProcess
) -> Iterator[ClientProcess]:
    process = ClientProcess(list(program.command), tmp_path_factory.mktemp("client"), warmed)
    yield process
    process.kill()


@pytest.fixture
async def client(start_proxy: StartProxy, upstream: ScriptedUpstream, program: Program) -> Client:
    if program.wants_id:
        upstream.extra = {"id": "cc93"}
    return await start_proxy(provider=program.provider)


@pytest.fixture
def fills(program: Program, record_property: Callable[[str, object], None]) -> Fills:
    """Says which column of the client's row a test fills."""
    return lambda column: record_property("matrix", (program.name, column))


def sent(calls: list[Call]) -> list[Any]:
    return [item for call in calls for item in call.items]


def assert_vectors(answer: dict[str, Any], items: list[Any]) -> None:
    expected = [vector("m", item, 16).tolist() for item in items]
    assert np.asarray(answer["vectors"], np.float32).tolist() == expected, answer


@pytest.mark.usefixtures("client")
async def test_a_client_sends_the_items_that_it_is_given(
    program: Program, process: ClientProcess, upstream: ScriptedUpstream, fills: Fills
) -> None:
    fills("sends")
    assert_vectors(await process.embed(upstream.base_url, "m", TEXTS), program.items(TEXTS))
    inputs = [program.items(TEXTS)] if program.sends_lists else program.items(TEXTS)
    assert [call.json["input"] for call in upstream.calls] == inputs
    for call in upstream.calls:
        assert (call.method, call.target) == ("POST", "/v1/embeddings")
        assert call.headers["Authorization"] == "Bearer sk-test"
        assert call.json == {"model": "m", "input": call.json["input"], **program.fields}


@pytest.mark.usefixtures("client")
async def test_which_of_its_headers_change(
    program: Program, process: ClientProcess, upstream: ScriptedUpstream, fills: Fills
) -> None:
    fills("sends")
    for _ in range(2):
        await process.embed(upstream.base_url, "m", TEXTS[:1])
    first, second = (dict(call.headers) for call in upstream.calls)
    changed = {name.lower() for name, _ in first.items() ^ second.items()}
    assert changed == program.changing


async def test_a_client_gets_its_vectors_of_a_miss(
    program: Program, process: ClientProcess, client: Client, upstream: ScriptedUpstream, fills: Fills
) -> None:
    fills("miss")
    assert_vectors(await process.embed(client.proxy.base_url, "m", TEXTS), program.items(TEXTS))
    assert sent(upstream.calls) == program.items(TEXTS)


async def test_a_client_gets_its_vectors_of_a_hit(
    program: Program, process: ClientProcess, client: Client, upstream: ScriptedUpstream, fills: Fills
) -> None:
    fills("hit")
    for _ in range(2):
        assert_vectors(await process.embed(client.proxy.base_url, "m", TEXTS), program.items(TEXTS))
    assert sent(upstream.calls) == program.items(TEXTS)
    requests = 1 if program.sends_lists else len(TEXTS)
    for outcome in ("miss", "hit"):
        assert await client.metric("embedding_proxy_requests_total", outcome=outcome) == requests


async def test_a_new_text_between_cached_ones(
    program: Program, process: ClientProcess, client: Client, upstream: ScriptedUpstream, fills: Fills
) -> None:
    fills("partial")
    await process.embed(client.proxy.base_url, "m", [TEXTS[0], TEXTS[2]])
    upstream.calls.clear()
    assert_vectors(await process.embed(client.proxy.base_url, "m", TEXTS), program.items(TEXTS))
    assert sent(upstream.calls) == program.items(TEXTS if program.is_keyed_whole else TEXTS[1:2])


@pytest.mark.parametrize("floats", ["shortest", "widened", "wide"])
async def test_the_very_numbers_of_the_upstream(
    process: ClientProcess, client: Client, upstream: ScriptedUpstream, fills: Fills, floats: str
) -> None:
    fills("bytes")
    upstream.floats = floats
    direct = await process.embed(upstream.base_url, "m", TEXTS)
    miss = await process.embed(client.proxy.base_url, "m", TEXTS)
    calls = len(upstream.calls)
    hit = await process.embed(client.proxy.base_url, "m", TEXTS)
    assert len(upstream.calls) == calls
    assert len(direct["vectors"]) == len(TEXTS)
    assert direct == miss == hit


async def test_an_upstream_that_writes_as_little_as_it_may(
    program: Program, process: ClientProcess, client: Client, upstream: ScriptedUpstream, fills: Fills
) -> None:
    """Floats whatever was asked for, in any order, and no usage: what breaks one client or another without a proxy."""
    fills("bare upstream")

    def bare(call: Call) -> web.Response:
        answer = upstream.answer_to({"model": "m", "input": call.json["input"]})
        data = [{"index": datum["index"], "embedding": datum["embedding"]} for datum in reversed(answer["data"])]
        return web.json_response({"data": data})

    upstream.reply = bare
    for _ in range(2):
        assert_vectors(await process.embed(client.proxy.base_url, "m", TEXTS), program.items(TEXTS))
    assert sent(upstream.calls) == program.items(TEXTS)


def refusal(status: int) -> Reply:
    # As OpenRouter writes it, whose client takes no other code than a number.
    return error_reply(status, {"error": {"message": "no", "code": status}}, retry_after_ms="1")


@pytest.mark.parametrize("status", [400, 401])
async def test_a_client_gets_the_upstreams_error(
    program: Program,
    process: ClientProcess,
    client: Client,
    upstream: ScriptedUpstream,
    fills: Fills,
    status: int,
) -> None:
    fills("error")
    upstream.reply = refusal(status)
    through = await process.embed(client.proxy.base_url, "m", TEXTS[:1])
    assert through == {"error": {"status": status, "type": program.errors[status - 400]}}
    assert len(upstream.calls) == 1
    assert through == await process.embed(upstream.base_url, "m", TEXTS[:1])


@pytest.mark.relays_refusals
async def test_a_retry_after_429(
    program: Program, process: ClientProcess, client: Client, upstream: ScriptedUpstream, fills: Fills
) -> None:
    fills("retry")
    busy = refusal(429)
    upstream.reply = lambda call: busy(call) if len(upstream.calls) == 1 else upstream.embed(call)
    answer = await process.embed(client.proxy.base_url, "m", TEXTS[:1])
    if program.retries:
        assert_vectors(answer, program.items(TEXTS[:1]))
    else:
        assert answer == {"error": {"status": 429, "type": program.errors[2]}}
    assert len(upstream.calls) == 1 + program.retries
