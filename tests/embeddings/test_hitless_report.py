"""Which requests count against a client, and what the operator is told of those that get no hits."""

import logging
from typing import Any

import pytest

from proxy.embeddings.header_watch import MANY_VALUES
from proxy.embeddings.hitless_report import HitlessReport
from proxy.embeddings.log_once import LogOnce
from proxy.embeddings.progress import Progress
from proxy.labels import RequestOutcome
from proxy.ledger.cause import Cause, Why
from proxy.ledger.hitless import MANY_REQUESTS, MANY_TOKENS, Hitless
from proxy.ledger.ledger import Ledger
from proxy.protocol.identities import Identity
from proxy.telemetry.metrics import Metrics
from tests.support.fake_client import FakeClient, origin_of
from tests.support.samples import samples

FIELD = Cause("unknown-field", "my_tag")
OWN = Identity([("authorization", "Bearer sk-1")], [], is_signed=False)
AGENT = "OpenAI/Python 9.9"


class Watched:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.hitless_report = HitlessReport(Hitless(), self.metrics, LogOnce())

    def end(self, outcome: RequestOutcome, times: int = 1, **more: Any) -> Progress:
        """Requests end; returns what is known of the last one."""
        for _ in range(times):
            last = self._end(outcome, **more)
        return last

    def _end(
        self,
        outcome: RequestOutcome,
        *,
        cause: Cause | None = FIELD,
        tenant: bytes = b"t",
        own: Identity = OWN,
        user_agent: str | None = AGENT,
        cached: int = 0,
        has_origin: bool = True,
    ) -> Progress:
        progress = Progress("id")
        progress.outcome, progress.cached, progress.client_label = outcome, cached, "search"
        progress.why = Why(cause, "")
        progress.origin = origin_of(FakeClient()) if has_origin else None
        self.hitless_report.ended(progress, tenant, own, user_agent)
        return progress

    def uncached(self, **labels: str) -> float:
        return sum(samples(self.metrics, "uncached_requests_total", **labels).values())


@pytest.fixture
def watched() -> Watched:
    return Watched()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return caplog.messages


MISS, HIT, BYPASS = RequestOutcome.MISS, RequestOutcome.HIT, RequestOutcome.BYPASS


@pytest.mark.parametrize("outcome", [MISS, BYPASS])
def test_a_client_without_hits_is_named_with_the_reason_and_the_remedy(
    watched: Watched, caplog: pytest.LogCaptureFixture, outcome: RequestOutcome
) -> None:
    watched.end(outcome, MANY_REQUESTS - 1)
    assert not warnings_in(caplog)
    watched.end(outcome)
    (said,) = warnings_in(caplog)
    assert said.startswith(
        "client search (OpenAI/Python) had no hit in 100 requests: unknown-field my_tag; say what the field does:"
        ' [providers.generic] neutral = ["my_tag"]'
    )


def test_a_client_without_name_and_program_is_named_too(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(MANY_REQUESTS):
        progress = Progress("id")
        progress.outcome, progress.why = MISS, Why(FIELD, "")
        watched.hitless_report.ended(progress, b"t", OWN, None)
    (said,) = warnings_in(caplog)
    assert said.startswith("client without a name had no hit in 100 requests: ")
    assert "[providers.NAME]" in said


@pytest.mark.parametrize("last", [(HIT, 0), (MISS, 1), (RequestOutcome.PARTIAL, 1)])
def test_any_cached_item_begins_the_count_again(
    watched: Watched, caplog: pytest.LogCaptureFixture, last: tuple[RequestOutcome, int]
) -> None:
    outcome, cached = last
    watched.end(MISS, MANY_REQUESTS - 1)
    watched.end(outcome, cached=cached)
    watched.end(MISS, MANY_REQUESTS - 1)
    assert not warnings_in(caplog)
    watched.end(MISS)
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize("outcome", [RequestOutcome.ERROR, RequestOutcome.PASS])
def test_errors_and_other_routes_say_nothing_of_the_cache(
    watched: Watched, caplog: pytest.LogCaptureFixture, outcome: RequestOutcome
) -> None:
    watched.end(outcome, 2 * MANY_REQUESTS)
    assert not warnings_in(caplog)


def test_requests_with_a_reason_are_counted_except_hits_and_errors(watched: Watched) -> None:
    for outcome in (MISS, BYPASS, HIT, RequestOutcome.ERROR):
        watched.end(outcome)
    watched.end(MISS, cause=None)
    labels = {"client": "search", "reason": "unknown-field", "field": "my_tag", "user_agent": "OpenAI/Python"}
    assert watched.uncached(**labels) == watched.uncached() == 2


def test_the_log_line_has_the_reason_and_the_program_unless_it_is_a_hit(watched: Watched) -> None:
    assert watched.end(MISS).why == Why(FIELD, "OpenAI/Python")
    assert watched.end(RequestOutcome.ERROR, cause=None).why == Why(None, "OpenAI/Python")
    assert watched.end(HIT).why is None


TOKENS = (
    [f"Bearer eyJ{n}.eyJ.c2ln" for n in range(MANY_TOKENS)],
    [f"eyJ{n}.eyJ." for n in range(MANY_TOKENS)],
    [f"bearer  ya29.a0{n}" for n in range(MANY_TOKENS)],
)


def ask_with(watched: Watched, tokens: list[str], **more: Any) -> None:
    for number in range(MANY_REQUESTS):
        token = tokens[number % len(tokens)]
        own = Identity([("authorization", token)], [], is_signed=False)
        watched.end(MISS, cause=None, tenant=token.encode(), own=own, **more)


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_program_whose_tokens_expire_is_named(
    watched: Watched, caplog: pytest.LogCaptureFixture, tokens: list[str]
) -> None:
    ask_with(watched, tokens)
    (said,) = warnings_in(caplog)
    assert said.startswith("client search (OpenAI/Python) had no hit in 100 requests: expiring-token; set --share all")


@pytest.mark.parametrize(
    "tokens",
    [TOKENS[0][1:], [f"Bearer sk-{n}" for n in range(MANY_TOKENS)], [f"Bearer eyJ{n}.a" for n in range(MANY_TOKENS)]],
)
def test_few_tokens_and_keys_that_last_are_no_cause(
    watched: Watched, caplog: pytest.LogCaptureFixture, tokens: list[str]
) -> None:
    ask_with(watched, tokens)
    assert not warnings_in(caplog)


@pytest.mark.parametrize(("outcome", "cached"), [(HIT, 1), (RequestOutcome.PARTIAL, 1)])
def test_a_hit_of_the_program_ends_its_count_of_tokens(
    watched: Watched, caplog: pytest.LogCaptureFixture, outcome: RequestOutcome, cached: int
) -> None:
    ask_with(watched, TOKENS[0][:-1])
    for number in range(MANY_REQUESTS // 2):
        own = Identity([("authorization", TOKENS[0][number % MANY_TOKENS])], [], is_signed=False)
        watched.end(MISS, cause=None, tenant=bytes([number]), own=own)
    watched.end(outcome, cached=cached, tenant=b"another")
    own = Identity([("authorization", TOKENS[0][0])], [], is_signed=False)
    watched.end(MISS, MANY_REQUESTS - 1, cause=None, own=own)
    assert not warnings_in(caplog)


def test_a_header_field_that_varies_explains_as_many_requests_as_had_new_values(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, MANY_REQUESTS + 1):
        watched.end(MISS, cause=None)
        if number % MANY_VALUES == 0 and number <= MANY_REQUESTS // 2 + MANY_VALUES:
            watched.hitless_report.varying_header(b"t", "x-job")
    (said,) = warnings_in(caplog)
    assert "100 requests: varying-header x-job; if it does not change the vector, set --neutral-headers x-job" in said


def test_a_wrong_path_is_counted_and_named(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("id")
    watched.metrics.ledger = Ledger()
    for _ in range(MANY_REQUESTS):
        watched.hitless_report.wrong_path(progress, "search", b"t", "/embeddings", AGENT)
    assert progress.why == Why(Cause("wrong-path", "/embeddings"), "OpenAI/Python")
    wrong_paths = watched.uncached(
        client="search", reason="wrong-path", field="/embeddings", user_agent="OpenAI/Python"
    )
    assert wrong_paths == MANY_REQUESTS
    (said,) = warnings_in(caplog)
    assert "wrong-path /embeddings; set the client's base URL to this proxy's /v1" in said
