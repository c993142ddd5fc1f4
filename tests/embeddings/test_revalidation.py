"""One probe for one credential, however many requests wait, and one request's item does not decide for another's."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from proxy.access.validations import Validations
from proxy.cache.store import NoStore
from proxy.embeddings.revalidation import ProbeResult, Revalidator
from proxy.errors import Overloaded, ProxyError, UpstreamDown, UpstreamStalled
from proxy.fetch.fetcher import Fetcher
from proxy.fetch.outcomes import ErrorResponse, InvalidResponse, Outcome
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.spending import Spending
from proxy.fetch.write_through import WriteThrough
from proxy.telemetry.metrics import Metrics
from tests.support.client_requests import client_request_for
from tests.support.dict_store import Clock, make_cache
from tests.support.fake_batcher import FakeBatcher, embedded
from tests.support.fake_client import response
from tests.support.virtual_loop import run_virtually, virtually

A, B = b"a" * 32, b"b" * 32
REFRESH = Policy(0.0).refreshing()
TIMEOUT_S = 2.0


class Probing:
    def __init__(self) -> None:
        self.batcher = FakeBatcher()
        self.metrics = Metrics()
        as_batcher: Any = self.batcher
        validations = Validations(ttl_s=60, clock=lambda: 0.0)
        cache = make_cache(NoStore())
        self.batcher.write_through = WriteThrough(cache, validations, clock=Clock())
        fetcher = Fetcher(cache, as_batcher, validations, timeout_s=1, spending=Spending(), shares_all=False)
        self.revalidator = Revalidator(fetcher, self.metrics)

    def start(
        self, text: str = "a", *, credentials: bytes = b"ann", timeout_s: float | None = TIMEOUT_S
    ) -> "asyncio.Task[ProbeResult | None]":
        client_request = client_request_for([text], [text.encode() * 32], credentials=credentials)
        request = FetchRequest(client_request, [text.encode() * 32], REFRESH)
        return asyncio.create_task(self.revalidator.ask(request, timeout_s=timeout_s))

    async def held(self, *starts: "asyncio.Task[ProbeResult | None]") -> None:
        """Until all of these wait for an upstream that has not responded."""
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(start.done() for start in starts)

    def counted(self, label: str) -> float:
        return self.metrics.validations.labels(label).value


def refusing(status: int) -> Callable[[FetchRequest], Outcome]:
    return lambda request: ErrorResponse(response(status, {}), request.client_request.parsed.body)


def result_of(task: "asyncio.Task[ProbeResult | None]") -> ProbeResult:
    result = task.result()
    assert result is not None
    return result


# --- how many probes


@virtually
async def test_requests_with_one_credential_wait_for_one_probe_that_the_first_is_billed_for() -> None:
    probing = Probing()
    probing.batcher.gate.clear()
    asked = [probing.start("a"), probing.start("a"), probing.start("b")]
    await probing.held(*asked)
    probing.batcher.gate.set()
    await asyncio.wait(asked)
    assert probing.batcher.calls == [["a"]]
    assert [result_of(task).is_own for task in asked] == [True, False, False]
    assert all(result_of(task).fetched.is_by_origin for task in asked)
    assert probing.counted("confirmed") == 1


@virtually
async def test_each_credential_has_a_probe_of_its_own() -> None:
    probing = Probing()
    probing.batcher.gate.clear()
    asked = [probing.start("a", credentials=name) for name in (b"ann", b"bob")]
    await probing.held(*asked)
    probing.batcher.gate.set()
    await asyncio.wait(asked)
    assert probing.batcher.calls == [["a"], ["a"]]
    assert probing.counted("confirmed") == 2


@virtually
async def test_a_probe_that_has_ended_is_not_used_again() -> None:
    probing = Probing()
    for _ in range(2):
        assert (await probing.start()) is not None
    assert probing.batcher.calls == [["a"], ["a"]]


# --- whose failure it is


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_credential_is_refused_for_all_that_wait(status: int) -> None:
    async def run() -> None:
        probing = Probing()
        probing.batcher.outcome = refusing(status)
        asked = [probing.start("a"), probing.start("b")]
        await asyncio.wait(asked)
        assert probing.batcher.calls == [["a"]]
        for task in asked:
            failure = result_of(task).fetched.failure
            assert failure is not None
            assert failure.is_verdict
        assert probing.counted("refused") == 1

    run_virtually(run())


@virtually
async def test_an_item_that_the_upstream_rejects_is_not_held_against_another_request() -> None:
    probing = Probing()

    def outcome(request: FetchRequest) -> Outcome | ProxyError:
        return refusing(400)(request) if request.items == ["a"] else embedded(request)

    probing.batcher.outcome = outcome
    asked = [probing.start("a"), probing.start("b")]
    await asyncio.wait(asked)
    assert probing.batcher.calls == [["a"], ["b"]]
    assert [result_of(task).is_own for task in asked] == [True, True]
    assert result_of(asked[0]).fetched.failure is not None
    assert result_of(asked[1]).fetched.failure is None


@virtually
async def test_of_many_requests_that_are_rejected_each_waits_for_one_other_at_most() -> None:
    probing = Probing()
    probing.batcher.outcome = refusing(400)
    asked = [probing.start(text) for text in "abcdef"]
    await asyncio.wait(asked)
    assert sorted(probing.batcher.calls) == [[text] for text in "abcdef"]


@virtually
async def test_no_other_request_waits_for_the_probe_of_one_that_needed_its_own() -> None:
    probing = Probing()

    def outcome(request: FetchRequest) -> Outcome | ProxyError:
        probing.batcher.gate.clear()  # for all that come after the first
        return refusing(400)(request)

    probing.batcher.outcome = outcome
    first, own = probing.start("a"), probing.start("b")
    await first
    await probing.held(own)
    other = probing.start("c")
    await probing.held(own, other)
    assert probing.batcher.calls == [["a"], ["b"], ["c"]]
    probing.batcher.gate.set()
    await asyncio.wait([own, other])


@pytest.mark.parametrize(("timeout_s", "probes"), [(TIMEOUT_S, 1), (None, 2)])
def test_an_outage_counts_for_others_only_if_they_can_be_served_without_a_verdict(
    timeout_s: float | None, probes: int
) -> None:
    async def run() -> None:
        probing = Probing()
        probing.batcher.outcome = lambda _: UpstreamStalled("no response")
        asked = [probing.start("a", timeout_s=timeout_s), probing.start("b", timeout_s=timeout_s)]
        await asyncio.wait(asked)
        assert len(probing.batcher.calls) == probes
        assert all(result_of(task).fetched.failure is not None for task in asked)

    run_virtually(run())


@virtually
async def test_others_see_a_failure_without_the_cookies_of_the_first() -> None:
    probing = Probing()
    refused = response(401, {}, Set_Cookie="of=first")
    probing.batcher.outcome = lambda request: ErrorResponse(refused, request.client_request.parsed.body)
    asked = [probing.start("a"), probing.start("a")]
    await asyncio.wait(asked)
    cookies = []
    for task in asked:
        failure = result_of(task).fetched.failure
        assert failure is not None
        assert isinstance(failure.cause, ErrorResponse)
        cookies.append(failure.cause.response.headers.get("Set-Cookie"))
    assert cookies == ["of=first", None]


# --- what is counted


@pytest.mark.parametrize(
    ("outcome", "label"),
    [
        (embedded, "confirmed"),
        (lambda request: embedded(request, by_origin=False), "unknown"),
        (lambda request: InvalidResponse(response(246, {}), request.body, "status", by_origin=True), "confirmed"),
        (refusing(401), "refused"),
        (refusing(400), "unknown"),
        (refusing(500), "unknown"),
        (lambda _: Overloaded("too much waits"), None),
        (lambda _: UpstreamDown("open"), None),
    ],
)
def test_a_probe_is_counted_once_by_the_upstreams_verdict(outcome: Any, label: str | None) -> None:
    async def run() -> None:
        probing = Probing()
        probing.batcher.outcome = outcome
        await probing.start()
        counts = {name: probing.counted(name) for name in ("confirmed", "refused", "unknown")}
        assert counts == {name: float(name == label) for name in counts}

    run_virtually(run())


# --- waiting, and leaving


@virtually
async def test_the_timeout_counts_from_when_the_probe_was_sent() -> None:
    probing = Probing()
    probing.batcher.gate.clear()
    loop = asyncio.get_running_loop()
    first = probing.start()
    await asyncio.sleep(1.5)
    second = probing.start()
    assert await first is None
    assert await second is None
    assert loop.time() == TIMEOUT_S
    assert await probing.start() is None  # at once: an upstream that hangs delays nobody else
    assert loop.time() == TIMEOUT_S
    assert probing.batcher.calls == [["a"]]


@virtually
async def test_a_probe_outlives_requests_that_no_longer_wait() -> None:
    probing = Probing()
    probing.batcher.gate.clear()
    patient = probing.start(timeout_s=None)
    leaving = [probing.start(), probing.start(timeout_s=None)]
    await probing.held(patient, *leaving)
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    probing.batcher.gate.set()
    assert await patient is not None
    assert probing.batcher.calls == [["a"]]


@virtually
async def test_if_the_request_that_probes_leaves_its_probe_counts_for_others() -> None:
    probing = Probing()
    probing.batcher.gate.clear()
    first, other = probing.start(), probing.start()
    await probing.held(first, other)
    first.cancel()
    await asyncio.wait([first])
    probing.batcher.gate.set()
    result = await other
    assert result is not None
    assert (result.is_own, result.fetched.failure) == (False, None)
    assert probing.counted("confirmed") == 1


@virtually
async def test_a_probe_that_is_cancelled_is_a_failure_of_all_that_wait() -> None:
    probing = Probing()
    probing.batcher.gate.clear()
    asked = [probing.start(), probing.start()]
    await probing.held(*asked)
    probing.revalidator._probes.cancel()
    await asyncio.wait(asked)
    for task in asked:
        failure = result_of(task).fetched.failure
        assert failure is not None
        assert isinstance(failure.cause, ProxyError)
