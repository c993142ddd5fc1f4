"""Merged calls: each request gets its own part, and its own result if the call fails. No more calls than that takes."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admin.samples import Samples
from proxy.errors import Overloaded, ProxyError, UpstreamBroke, UpstreamUnreachable
from proxy.fetch.failover import Failover
from proxy.fetch.merge_limits import MergeLimits
from proxy.fetch.merged_call import MergedCalls
from proxy.fetch.outcomes import EmbedResult, ErrorResponse, InvalidResponse, Outcome
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.retry_budget import RetryBudget
from proxy.fetch.slots import Slots
from proxy.fetch.upstream_call import UpstreamCalls
from proxy.telemetry.definitions import UPSTREAM_MERGED_REQUESTS
from proxy.telemetry.metrics import Metrics
from proxy.tenant import Tenant
from proxy.turns import KEYS_A_TURN
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.router import Origin
from tests.support.client_requests import client_request_for
from tests.support.fake_client import FakeClient, SentCall, always_room, embeddings, good, origin_of, response

USUAL = 100
Reply = Callable[[SentCall], UpstreamResponse]


class Merging:
    def __init__(self, reply: Reply = good, *, concurrency: int = 1000, timeout_s: float = 60.0) -> None:
        self.client = FakeClient(reply)
        self.origin = origin_of(self.client)
        self.metrics = Metrics()
        self.budgets: defaultdict[Origin, RetryBudget] = defaultdict(RetryBudget)
        self.limits = MergeLimits(lambda: 0.0)
        slots = Slots(concurrency, timeout_s=timeout_s, waited_s=lambda _: None, room=always_room)
        self.calls = UpstreamCalls(Failover(slots, self.metrics), self.metrics, self.budgets, max_incoming_bytes=10**6)
        self.merged = MergedCalls(self.calls, self.metrics, self.budgets, self.limits)

    def request(self, *texts: str, **more: Any) -> FetchRequest:
        keys = [text.encode().ljust(32) for text in texts]
        return FetchRequest(client_request_for(list(texts), keys, origin=self.origin, **more), keys, Policy(0.0))

    async def outcomes(self, *texts: str) -> Sequence[Outcome | ProxyError]:
        """Of a request for each text."""
        return await self.merged.outcomes([self.request(text) for text in texts])

    @property
    def texts(self) -> list[list[str]]:
        """Of each call."""
        return [call.texts for call in self.client.calls]

    @property
    def limit(self) -> int:
        return self.limits.items("one", "m", USUAL)


@pytest.fixture
async def merging() -> AsyncIterator[Merging]:
    merging = Merging()
    yield merging
    merging.calls.close()


def failing_if(is_bad: Callable[[list[str]], bool], status: int, **headers: str) -> Reply:
    """Fail the calls whose texts are bad, with their texts in the message."""
    return lambda call: (
        response(status, {"error": {"message": call.texts}}, **headers) if is_bad(call.texts) else good(call)
    )


def always(texts: list[str]) -> bool:
    return bool(texts)


def is_merged(texts: list[str]) -> bool:
    return len(texts) > 1


def numbers(outcome: Outcome | ProxyError) -> list[list[int]]:
    """The vectors of a result."""
    assert isinstance(outcome, EmbedResult)
    return [list(vector.payload) for vector in outcome.vectors if vector is not None]


def status(outcome: Outcome | ProxyError) -> int:
    assert isinstance(outcome, ErrorResponse)
    return outcome.response.status


# --- calls that succeed


async def test_a_request_alone_is_sent_and_answered_as_it_is(merging: Merging) -> None:
    request = merging.request("one", "three")
    (outcome,) = await merging.merged.outcomes([request])
    assert [call.body for call in merging.client.calls] == [request.client_request.parsed.body]
    assert isinstance(outcome, EmbedResult)
    assert numbers(outcome) == [[3, 1], [5, 1]]
    assert (outcome.is_unmerged, outcome.is_own_body, outcome.usage) == (
        True,
        True,
        {"prompt_tokens": 8, "total_tokens": 8},
    )


async def test_a_part_of_a_body_is_not_the_clients_own_body(merging: Merging) -> None:
    whole = merging.request("one", "three")
    (outcome,) = await merging.merged.outcomes([whole.only([whole.keys[1]])])
    assert merging.texts == [["three"]]
    assert isinstance(outcome, EmbedResult)
    assert (outcome.is_unmerged, outcome.is_own_body) == (True, False)


async def test_several_requests_are_one_call_and_each_gets_its_own_part(merging: Merging) -> None:
    requests = [merging.request("a"), merging.request("bb", "ccc"), merging.request("dddd")]
    outcomes = await merging.merged.outcomes(requests)
    assert merging.texts == [["a", "bb", "ccc", "dddd"]]
    assert [numbers(outcome) for outcome in outcomes] == [[[1, 1]], [[2, 1], [3, 1]], [[4, 1]]]
    results = [outcome for outcome in outcomes if isinstance(outcome, EmbedResult)]
    assert [result.tokens for result in results] == [[1], [2, 3], [4]]
    assert [result.usage["prompt_tokens"] for result in results] == [1, 5, 4]
    assert not any(result.is_unmerged or result.is_own_body for result in results)


async def test_each_request_gets_the_texts_of_its_own_numbers(merging: Merging) -> None:
    def reply(call: SentCall) -> UpstreamResponse:
        data = [{"index": i, "embedding": [0.5 + i, 0.25]} for i in range(len(call.texts))]
        return response(200, embeddings(call, data=data))

    merging.client.reply = reply
    outcomes = await merging.merged.outcomes([merging.request("a"), merging.request("bb", "ccc")])
    results = [outcome for outcome in outcomes if isinstance(outcome, EmbedResult)]
    assert [list(result.texts) for result in results] == [[b"[0.5,0.25]"], [b"[1.5,0.25]", b"[2.5,0.25]"]]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 1000))
def test_whatever_was_billed_is_apportioned_without_a_rest(sizes: list[int], billed: int) -> None:
    async def run() -> None:
        usage = {"prompt_tokens": billed, "total_tokens": billed}
        merging = Merging(lambda call: response(200, embeddings(call, usage=usage)))
        requests = [
            merging.request(*(f"text {number} {item}" for item in range(size))) for number, size in enumerate(sizes)
        ]
        outcomes = await merging.merged.outcomes(requests)
        merging.calls.close()
        results = [outcome for outcome in outcomes if isinstance(outcome, EmbedResult)]
        assert [len(result.vectors) for result in results] == [len(result.tokens) for result in results] == sizes
        assert [sum(result.tokens) for result in results] == [result.usage["prompt_tokens"] for result in results]
        assert sum(sum(result.tokens) for result in results) == billed

    asyncio.run(run())


async def test_calls_are_counted_by_their_requests_and_two_parts_of_one_request_are_one(merging: Merging) -> None:
    whole = merging.request("a", "b")
    await merging.merged.outcomes([whole.part(slice(0, 1)), whole.part(slice(1, 2)), merging.request("c")])
    buckets = Samples(merging.metrics.families()).buckets(UPSTREAM_MERGED_REQUESTS)[""]
    assert (buckets[1.0], buckets[2.0]) == (0, 1)
    await merging.outcomes("alone")
    buckets = Samples(merging.metrics.families()).buckets(UPSTREAM_MERGED_REQUESTS)[""]
    assert (buckets[1.0], buckets[2.0]) == (1, 2)


async def test_a_request_alone_that_fails_is_not_tried_again(merging: Merging) -> None:
    merging.client.reply = failing_if(always, 400)
    (outcome,) = await merging.outcomes("a")
    assert (status(outcome), len(merging.client.calls)) == (400, 1)
    assert isinstance(outcome, ErrorResponse)
    assert b'"a"' in outcome.response.body


# --- header fields


async def test_a_merged_call_has_what_its_requests_have_in_common(merging: Merging) -> None:
    first = {
        "Authorization": "Bearer k",
        "User-Agent": "first",
        "Content-Type": "application/json; charset=utf-8",
        "X-Both": "1",
        "X-Differs": "1",
        "If-Match": '"v1"',
        "X-Amzn-Oidc-Data": "signed a moment ago",
    }
    other = {
        "Authorization": "Bearer k",
        "User-Agent": "other",
        "X-Both": "1",
        "X-Differs": "2",
        "X-Amzn-Oidc-Data": "signed now",
        "Cookie": "of=other",
    }
    requests = [merging.request(text, headers=of_one) for text, of_one in (("a", first), ("b", other), ("c", first))]
    await merging.merged.outcomes(requests)
    (call,) = merging.client.calls
    assert dict(call.headers) == {
        "Authorization": "Bearer k",
        "User-Agent": "first",
        "Content-Type": "application/json; charset=utf-8",
        "X-Both": "1",
        "X-Amzn-Oidc-Data": "signed a moment ago",
    }


async def test_the_header_fields_of_many_requests_are_compared_in_turns(merging: Merging) -> None:
    requests = [merging.request(f"{i}", headers={"X-A": "a", "X-B": str(i // 199)}) for i in range(200)]
    merging.client.gate.clear()
    call = asyncio.create_task(merging.merged.outcomes(requests))
    iterations = 0
    while not merging.client.calls:
        await asyncio.sleep(0)
        iterations += 1
    merging.client.gate.set()
    assert iterations > 199 // KEYS_A_TURN
    assert len(await call) == 200
    assert merging.client.calls[0].headers == {"X-A": "a"}  # the last one has another X-B


async def test_the_requests_keep_their_own_header_fields_for_calls_of_their_own(merging: Merging) -> None:
    merging.client.reply = failing_if(is_merged, 400)
    requests = [merging.request(text, headers={"X-Text": text}) for text in "ab"]
    await merging.merged.outcomes(requests)
    assert [call.headers.get("X-Text") for call in merging.client.calls] == [None, "a", "b"]


# --- failures that concern everybody


@pytest.mark.parametrize(
    ("code", "headers"),
    [(401, {}), (429, {}), (503, {}), (529, {}), (500, {"Retry_After": "7"}), (400, {"Retry_After": "7"})],
)
async def test_what_concerns_everybody_is_not_tried_again(merging: Merging, code: int, headers: dict[str, str]) -> None:
    merging.client.reply = failing_if(always, code, **headers)
    outcomes = await merging.outcomes("secret", "other")
    assert len(merging.client.calls) == 1
    assert [status(outcome) for outcome in outcomes] == [code] * 2
    for outcome in outcomes:
        assert isinstance(outcome, ErrorResponse)
        assert b"secret" not in outcome.response.body
    assert merging.limit == USUAL


async def test_an_unreachable_upstream_is_not_tried_again(merging: Merging) -> None:
    error = UpstreamUnreachable("down")
    merging.client.reply = raising(error)
    assert await merging.outcomes("a", "b") == [error, error]
    assert len(merging.client.calls) == 1


async def test_a_tenant_with_too_many_calls_fails_no_other_that_it_was_merged_with() -> None:
    merging = Merging(concurrency=4, timeout_s=0.0)  # a tenant has two of them
    merging.client.gate.clear()
    requests = {name: merging.request(name) for name in ("a", "b", "ann", "bob", "cat", "bob's")}
    for name, request in requests.items():
        request.client_request.reservation.tenant = Tenant(b"ann" if name in {"a", "b", "ann"} else name[:3].encode())
    hanging = [asyncio.create_task(merging.merged.outcomes([requests[name]])) for name in "ab"]
    while len(merging.client.calls) < 2:
        await asyncio.sleep(0)
    call = asyncio.create_task(merging.merged.outcomes([requests[name] for name in ("ann", "bob", "cat", "bob's")]))
    while len(merging.client.calls) < 3:
        await asyncio.sleep(0)
    merging.client.gate.set()
    first, *others = await call
    assert isinstance(first, Overloaded)
    assert [numbers(other) for other in others] == [[[3, 1]], [[3, 1]], [[5, 1]]]
    assert merging.texts == [["a"], ["b"], ["bob", "cat", "bob's"]]
    await asyncio.gather(*hanging)


def raising(error: ProxyError) -> Reply:
    def reply(_: SentCall) -> UpstreamResponse:
        raise error

    return reply


# --- failures that may concern one of the requests


@pytest.mark.parametrize("code", [400, 403, 404, 413, 422])
async def test_after_a_4xx_each_request_is_sent_alone_and_gets_its_own_result(merging: Merging, code: int) -> None:
    merging.client.reply = failing_if(lambda texts: "BAD" in texts, code)
    outcomes = await merging.outcomes("a", "BAD", "cc", "d", "e")
    assert merging.texts == [["a", "BAD", "cc", "d", "e"], ["a"], ["BAD"], ["cc"], ["d"], ["e"]]
    assert numbers(outcomes[2]) == [[2, 1]]
    assert status(outcomes[1]) == code
    assert isinstance(outcomes[1], ErrorResponse)
    assert b"BAD" in outcomes[1].response.body  # its own words
    assert merging.limit == USUAL


@pytest.mark.parametrize("bad", [0, 1, 2, 4])
async def test_after_a_5xx_two_are_sent_first_and_all_once_one_succeeds(merging: Merging, bad: int) -> None:
    texts = [f"text {number}" for number in range(5)]
    merging.client.reply = failing_if(lambda given: texts[bad] in given, 500)
    outcomes = await merging.outcomes(*texts)
    assert [isinstance(outcome, EmbedResult) for outcome in outcomes] == [number != bad for number in range(5)]
    assert merging.texts[1:] == [[text] for text in texts]


@pytest.mark.parametrize("failure", [failing_if(always, 500), raising(UpstreamBroke("broke"))], ids=["500", "broke"])
@pytest.mark.parametrize(("requests", "calls"), [(2, 3), (3, 4), (5, 6), (10, 11), (40, 17)])
async def test_in_an_outage_there_are_hardly_more_calls_than_without_merging(
    merging: Merging, failure: Reply, requests: int, calls: int
) -> None:
    merging.client.reply = failure
    outcomes = await merging.outcomes(*(f"text {number}" for number in range(requests)))
    assert len(merging.client.calls) == calls
    assert not any(isinstance(outcome, EmbedResult) for outcome in outcomes)
    assert merging.limit == USUAL
    assert merging.budgets[merging.origin].calls() == (1 if requests < calls else 0)  # one call more than requests


@pytest.mark.parametrize(("alone", "waves"), [(500, [1, 2, 4, 4]), (400, [1, 2, 8]), (200, [1, 2, 8])])
async def test_while_it_may_be_an_outage_calls_are_made_two_by_two_and_then_twice_as_many(
    merging: Merging, alone: int, waves: list[int]
) -> None:
    def reply(call: SentCall) -> UpstreamResponse:
        return response(500 if is_merged(call.texts) else alone, embeddings(call))

    merging.client.reply = reply
    merging.client.gate.clear()
    sending = asyncio.create_task(merging.outcomes(*(f"text {number}" for number in range(10))))
    for made in accumulate(waves):
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(merging.client.calls) == made
        merging.client.gate.set()
        merging.client.gate.clear()
    await sending
    assert merging.budgets[merging.origin].calls(100) == (6 if alone == 500 else 16)


async def test_an_outage_that_lasts_uses_the_budget_up(merging: Merging) -> None:
    merging.client.reply = failing_if(always, 500)
    for number in range(20):
        await merging.outcomes(f"a {number}", f"b {number}")
    before = len(merging.client.calls)
    outcomes = await merging.outcomes("a", "b")
    assert len(merging.client.calls) == before + 1
    for outcome in outcomes:
        assert isinstance(outcome, ErrorResponse)
        assert b"several requests" in outcome.response.body  # nobody's own words
    merging.client.reply = good
    await merging.outcomes("a", "b")
    merging.client.reply = failing_if(lambda texts: "BAD" in texts, 500)
    assert numbers((await merging.outcomes("BAD", "b"))[1]) == [[1, 1]]


async def test_a_refused_assertion_is_that_of_the_first_request(merging: Merging) -> None:
    """It was sent for all of them."""
    field = "X-Amzn-Oidc-Data"

    def reply(call: SentCall) -> UpstreamResponse:
        return good(call) if call.headers[field] == "good" else response(401, {})

    merging.client.reply = reply
    requests = [merging.request("a", headers={field: "expired"}), merging.request("bb", headers={field: "good"})]
    outcomes = await merging.merged.outcomes(requests)
    assert status(outcomes[0]) == 401
    assert numbers(outcomes[1]) == [[2, 1]]
    assert merging.limit == USUAL


@pytest.mark.parametrize(("code", "calls"), [(401, 3), (429, 1), (503, 1)])
async def test_nothing_else_is_taken_for_a_refused_assertion(merging: Merging, code: int, calls: int) -> None:
    merging.client.reply = failing_if(is_merged, code)
    for _ in range(2):
        merging.client.calls.clear()
        await merging.merged.outcomes([merging.request(text, headers={"X-Amzn-Oidc-Data": text}) for text in "ab"])
        assert len(merging.client.calls) == calls
    assert merging.limit == USUAL  # it is not that the call was too large


async def test_a_refused_assertion_of_all_is_everybodys(merging: Merging) -> None:
    merging.client.reply = failing_if(always, 401)
    await merging.merged.outcomes([merging.request(text, headers={"X-Amzn-Oidc-Data": "expired"}) for text in "ab"])
    assert len(merging.client.calls) == 1


# --- an upstream that takes no lists, or none as long


async def test_after_a_4xx_to_a_merge_alone_half_as_much_is_merged(merging: Merging) -> None:
    merging.client.reply = failing_if(is_merged, 400)
    await merging.outcomes("a", "b", "c", "d")
    assert merging.limit == 2


async def test_a_5xx_to_a_merge_alone_takes_two_in_a_row(merging: Merging) -> None:
    merging.client.reply = failing_if(is_merged, 500)
    await merging.outcomes("a", "b", "c", "d")
    assert merging.limit == USUAL
    merging.client.reply = good
    await merging.outcomes("e", "f")
    merging.client.reply = failing_if(is_merged, 500)
    await merging.outcomes("g", "h", "i", "j")
    assert merging.limit == USUAL
    await merging.outcomes("k", "l", "m", "n")
    assert merging.limit == 2


async def test_responses_that_cannot_be_split_lower_the_limit_as_well(merging: Merging) -> None:
    def reply(call: SentCall) -> UpstreamResponse:
        data = [{**datum, "sparse": {}} for datum in embeddings(call)["data"]]
        return response(200, embeddings(call, data=data))

    merging.client.reply = reply
    outcomes = await merging.outcomes("a", "b", "c", "d")
    assert all(isinstance(outcome, InvalidResponse) for outcome in outcomes)
    assert merging.limit == 2


# --- vectors that can't be stored


async def test_a_request_with_an_unusable_vector_is_sent_alone_and_no_other(merging: Merging) -> None:
    def reply(call: SentCall) -> UpstreamResponse:
        data = embeddings(call)["data"]
        for text, datum in zip(call.texts, data, strict=True):
            if text == "null" and len(call.texts) > 1:
                datum["embedding"] = None
        return response(200, embeddings(call, data=data))

    merging.client.reply = reply
    outcomes = await merging.outcomes("a", "null", "ccc")
    assert merging.texts == [["a", "null", "ccc"], ["null"]]
    assert [numbers(outcome) for outcome in outcomes] == [[[1, 1]], [[4, 1]], [[3, 1]]]


# --- clients that leave


@pytest.mark.parametrize("code", [200, 400, 500])
async def test_a_cancelled_call_ends_all_calls_that_it_made(merging: Merging, code: int) -> None:
    """First the merged one, then, at 400 and 500, those for each request alone."""

    def reply(call: SentCall) -> UpstreamResponse:
        merging.client.gate.clear()
        return response(code, {"error": {}})

    merging.client.reply = reply
    if code == 200:
        merging.client.gate.clear()
    sending = asyncio.create_task(merging.outcomes("a", "b"))
    while len(merging.client.calls) < (1 if code == 200 else 3):
        await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    calls = len(merging.client.calls)
    merging.client.gate.set()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    assert len(merging.client.calls) == calls
