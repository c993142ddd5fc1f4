"""One body sent upstream: what counts as a valid response, what is billed, and what is left of a call that ended."""

import asyncio
import gzip
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from proxy.admin.samples import Samples
from proxy.errors import ProxyError, UpstreamBroke
from proxy.fetch.failover import Failover
from proxy.fetch.outcomes import CallFailure, ErrorResponse, InvalidResponse
from proxy.fetch.request import ClientRequest, FetchRequest, Policy
from proxy.fetch.retry_budget import RetryBudget
from proxy.fetch.slots import Slots
from proxy.fetch.upstream_call import UpstreamCalls, ValidResponse
from proxy.protocol.json_parts import LARGE_BYTES
from proxy.protocol.providers import GENERIC
from proxy.telemetry.definitions import UPSTREAM_MERGED_REQUESTS
from proxy.telemetry.metrics import Metrics
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.router import Fallback, Origin
from tests.support.client_requests import client_request_for
from tests.support.fake_client import FakeClient, SentCall, always_room, embeddings, good, origin_of, response

A, B = b"a" * 32, b"b" * 32
LARGE = 4 * 1024 * 1024


class Calls:
    def __init__(self) -> None:
        self.client, self.other = FakeClient(), FakeClient()
        self.origin = origin_of(self.client)
        self.metrics = Metrics()
        self.budgets: defaultdict[Origin, RetryBudget] = defaultdict(RetryBudget)
        slots = Slots(2, timeout_s=5, waited_s=lambda _: None, room=always_room)
        self.calls = UpstreamCalls(
            Failover(slots, self.metrics), self.metrics, self.budgets, max_incoming_bytes=2 * LARGE
        )

    def request(self, *texts: str, **more: Any) -> ClientRequest:
        return client_request_for(list(texts) or ["text"], [A, B][: len(texts) or 1], origin=self.origin, **more)

    async def send(self, client_request: ClientRequest | None = None) -> ValidResponse | CallFailure:
        client_request = client_request or self.request()
        request = FetchRequest(client_request, list(client_request.spec.keys), Policy(0.0))
        return await self.calls.send(client_request, [request], request.body, len(request.keys))

    def has_fallback(self) -> None:
        """The upstream is down, and has a fallback."""
        self.origin.set_fallbacks([Fallback(origin_of(self.other, "two"))])
        self.client.reply = lambda _: response(503, {})

    def billed(self, model: str = "m") -> float:
        return self.metrics.of_model(model).tokens["billed"].value

    def rejected(self, reason: str) -> float:
        return self.metrics.upstream_rejected.labels(reason).value

    @property
    def used_bytes(self) -> int:
        """Of responses that are being read."""
        return self.calls._flow_control.used_bytes


@pytest.fixture
async def calls() -> AsyncIterator[Calls]:
    calls = Calls()
    yield calls
    calls.calls.close()


def changed(**changes: Any) -> Callable[[SentCall], UpstreamResponse]:
    """A good response with some members changed."""
    return lambda call: response(200, embeddings(call, **changes))


# --- valid responses


@pytest.mark.parametrize("status", [200, 201])
async def test_a_valid_response_is_parsed_and_billed(calls: Calls, status: int) -> None:
    calls.client.reply = lambda call: response(status, embeddings(call))
    client_request = calls.request("one", "three")
    sent = await calls.send(client_request)
    assert isinstance(sent, ValidResponse)
    assert [vector.payload for vector in sent.parsed.vectors if vector] == [b"\x03\x01", b"\x05\x01"]
    assert (sent.body, sent.by_origin, sent.response.status) == (client_request.parsed.body, True, status)
    assert calls.metrics.label_of("m") == "m"
    assert calls.billed() == 8


async def test_a_response_that_bills_nothing_proves_the_models_name_as_well(calls: Calls) -> None:
    calls.client.reply = changed(usage=None)
    await calls.send()
    assert (calls.metrics.label_of("m"), calls.billed()) == ("m", 0)


async def test_a_response_without_a_model_has_the_requested_name(calls: Calls) -> None:
    calls.client.reply = changed(model=None)
    sent = await calls.send()
    assert isinstance(sent, ValidResponse)
    assert sent.parsed.model == "m"


async def test_a_vector_that_cannot_be_stored_is_counted_and_spoils_no_other(calls: Calls) -> None:
    calls.client.reply = changed(data=[{"index": 0, "embedding": [1, 2]}, {"index": 1, "embedding": None}])
    sent = await calls.send(calls.request("one", "two"))
    assert isinstance(sent, ValidResponse)
    assert [vector is None for vector in sent.parsed.vectors] == [False, True]
    assert sent.parsed.unusable is not None
    assert calls.rejected(sent.parsed.unusable) == 1


# --- failures


async def test_a_failed_call_is_a_value(calls: Calls) -> None:
    error = UpstreamBroke("broke")

    def reply(_: SentCall) -> UpstreamResponse:
        raise error

    calls.client.reply = reply
    assert await calls.send() is error


@pytest.mark.parametrize("status", [304, 400, 401, 500])
async def test_an_error_is_kept_with_its_body_and_not_billed(calls: Calls, status: int) -> None:
    error = response(status, {"error": {}, "usage": {"prompt_tokens": 5, "total_tokens": 5}})
    calls.client.reply = lambda _: error
    client_request = calls.request()
    assert await calls.send(client_request) == ErrorResponse(error, client_request.parsed.body)
    assert (calls.billed(), calls.metrics.label_of("m")) == (0, "other")


def gzipped(reply: Callable[[SentCall], UpstreamResponse]) -> Callable[[SentCall], UpstreamResponse]:
    """The same compressed, though the proxy does not ask for that."""

    def compressed(call: SentCall) -> UpstreamResponse:
        plain = reply(call)
        return response(plain.status, gzip.compress(plain.body), Content_Encoding="gzip")

    return compressed


INVALID: dict[str, Callable[[SentCall], UpstreamResponse]] = {
    "status": lambda call: response(246, embeddings(call)),
    "disowned": lambda call: response(200, embeddings(call), x_litellm_attempted_fallbacks="1"),
    "count": changed(data=[]),
    "multi-vector": changed(model="jina-colbert-v2"),
    "model-name": changed(model="m" * 1025),
    "not-json": lambda _: response(200, b"<html>"),
    "content-encoding": lambda call: response(200, embeddings(call), Content_Encoding="br-1"),
    "error-in-200": lambda _: response(200, {"error": {"code": 429}, "usage": {"prompt_tokens": 4}}),
}


@pytest.mark.parametrize(("reason", "reply"), INVALID.items(), ids=INVALID)
async def test_a_response_that_must_not_be_stored_is_counted_with_its_reason(
    calls: Calls, reason: str, reply: Callable[[SentCall], UpstreamResponse]
) -> None:
    calls.client.reply = reply
    client_request = calls.request()
    sent = await calls.send(client_request)
    assert isinstance(sent, InvalidResponse)
    assert (sent.reason, sent.body, sent.by_origin) == (reason, client_request.parsed.body, True)
    assert sent.confirms == (reason != "error-in-200")
    assert calls.rejected(reason) == 1


async def test_no_attempted_fallback_is_no_fallback(calls: Calls) -> None:
    calls.client.reply = lambda call: response(200, embeddings(call), x_litellm_attempted_fallbacks="0")
    assert isinstance(await calls.send(), ValidResponse)


@pytest.mark.parametrize("is_compressed", [False, True])
async def test_a_response_that_must_not_be_stored_is_billed_all_the_same(calls: Calls, is_compressed: bool) -> None:
    calls.client.reply = gzipped(INVALID["status"]) if is_compressed else INVALID["status"]
    await calls.send()
    assert calls.billed() == 4
    assert calls.metrics.label_of("m") == "m"


async def test_a_decompression_bomb_is_not_unpacked(calls: Calls) -> None:
    bomb = gzip.compress(orjson.dumps({"data": [], "padding": " " * 2**24}))
    assert len(bomb) * 100 < 2**22
    calls.client.reply = lambda _: response(200, bomb, Content_Encoding="gzip")
    sent = await calls.send()
    assert isinstance(sent, InvalidResponse)
    assert (sent.reason, sent.confirms) == ("content-encoding", True)


async def test_what_stands_in_place_of_the_only_embedding_is_kept(calls: Calls) -> None:
    calls.client.reply = changed(data=[{"index": 0, "embedding": [0.0, 0.0]}])
    sent = await calls.send()
    assert isinstance(sent, InvalidResponse)
    assert sent.embedding == b"[0.0,0.0]"


# --- a fallback's response


async def test_a_fallbacks_response_has_the_origins_name_of_the_model(calls: Calls) -> None:
    calls.has_fallback()
    calls.other.reply = changed(model="elsewhere/m")
    before = await calls.send()
    assert isinstance(before, ValidResponse)
    assert (before.parsed.model, before.by_origin) == ("", False)
    calls.client.reply = changed(model="m-2024")
    await calls.send()
    calls.client.reply = lambda _: response(503, {})
    after = await calls.send()
    assert isinstance(after, ValidResponse)
    assert (after.parsed.model, after.by_origin) == ("m-2024", False)
    of_another_client = await calls.send(calls.request(credentials=b"other"))
    assert isinstance(of_another_client, ValidResponse)
    assert of_another_client.parsed.model == ""


async def test_a_fallbacks_response_is_checked_by_its_own_providers_rules(calls: Calls) -> None:
    calls.has_fallback()
    other = calls.origin.candidates[1].origin
    other.provider = replace(GENERIC, fallback_markers={"x-model": "cheap-*"})
    calls.other.reply = lambda call: response(200, embeddings(call), x_model="cheap-1")
    sent = await calls.send()
    assert isinstance(sent, InvalidResponse)
    assert (sent.reason, sent.by_origin, sent.confirms) == ("disowned", False, False)


# --- the retry budget


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_a_valid_response_restores_the_budget_of_the_clients_upstream(calls: Calls, status: int) -> None:
    budget = calls.budgets[calls.origin]
    budget.spend(100)
    calls.client.reply = lambda call: response(status, embeddings(call))
    await calls.send()
    assert (budget.calls() > 0) == (status == 200)


# --- the client's own body


async def test_the_response_to_the_clients_own_body_comes_as_it_is(calls: Calls) -> None:
    calls.client.reply = lambda _: response(246, {"usage": {"prompt_tokens": 9, "total_tokens": 9}})
    client_request = calls.request("one", "two")
    relayed, by_origin = await calls.calls.send_own_body(client_request)
    assert (relayed.status, by_origin) == (246, True)
    assert [call.body for call in calls.client.calls] == [client_request.parsed.body]
    assert calls.billed() == 9
    assert Samples(calls.metrics.families()).buckets(UPSTREAM_MERGED_REQUESTS)[""][1.0] == 1


async def test_a_fallbacks_response_to_the_own_body_is_not_the_origins(calls: Calls) -> None:
    calls.has_fallback()
    assert (await calls.calls.send_own_body(calls.request()))[1] is False


async def test_an_own_body_that_fails_raises(calls: Calls) -> None:
    def reply(_: SentCall) -> UpstreamResponse:
        raise UpstreamBroke("broke")

    calls.client.reply = reply
    with pytest.raises(ProxyError, match="broke"):
        await calls.calls.send_own_body(calls.request())


@pytest.mark.parametrize(("status", "restores"), [(200, True), (400, True), (401, True), (429, False), (503, False)])
async def test_the_own_body_restores_the_budget_unless_it_may_be_an_outage(
    calls: Calls, status: int, restores: bool
) -> None:
    budget = calls.budgets[calls.origin]
    budget.spend(100)
    calls.client.reply = lambda _: response(status, {"usage": {"prompt_tokens": 9, "total_tokens": 9}})
    await calls.calls.send_own_body(calls.request())
    assert (budget.calls() > 0) == restores
    assert calls.billed() == (9 if status == 200 else 0)


# --- large responses, and clients that leave


def large(call: SentCall) -> UpstreamResponse:
    return response(200, orjson.dumps(embeddings(call)) + b" " * LARGE)


compressed = gzipped(good)


async def test_large_and_compressed_responses_are_parsed_as_others_are(calls: Calls) -> None:
    assert LARGE > LARGE_BYTES
    calls.client.reply = large
    sent = await calls.send()
    assert isinstance(sent, ValidResponse)
    calls.client.reply = compressed
    inflated = await calls.send()
    assert isinstance(inflated, ValidResponse)
    assert inflated.parsed.vectors == sent.parsed.vectors
    assert calls.used_bytes == 0


@pytest.mark.parametrize(("reply", "counted"), [(large, True), (compressed, False), (good, None)])
async def test_what_takes_long_to_parse_is_parsed_in_a_thread_and_counts_until_then(
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    reply: Callable[[SentCall], UpstreamResponse],
    counted: bool | None,
) -> None:
    in_thread = []

    async def run(function: Callable[..., Any], *arguments: Any) -> Any:
        in_thread.append(calls.used_bytes > LARGE)
        return function(*arguments)

    monkeypatch.setattr(calls.calls._worker, "run", run)
    calls.client.reply = reply
    await calls.send()
    assert in_thread == ([] if counted is None else [counted])
    assert calls.used_bytes == 0


async def test_a_call_that_is_cancelled_while_it_waits_is_not_billed(calls: Calls) -> None:
    calls.client.gate.clear()
    call = asyncio.create_task(calls.send())
    while not calls.client.calls:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert calls.billed() == 0
    calls.client.gate.set()
    assert isinstance(await calls.send(), ValidResponse)  # the call has not kept its slot


async def test_a_call_that_is_cancelled_while_its_response_is_parsed_leaves_nothing(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing = asyncio.Event()

    async def run(*_: object) -> None:
        parsing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(calls.calls._worker, "run", run)
    calls.client.reply = large
    call = asyncio.create_task(calls.send())
    await parsing.wait()
    assert calls.used_bytes > LARGE
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (calls.used_bytes, calls.billed()) == (0, 0)
