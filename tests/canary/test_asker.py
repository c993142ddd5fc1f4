"""The canary's calls: what is sent, what a measurement is made of, and why a check gets no vectors."""

import asyncio
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from proxy import __version__
from proxy.canary.asker import Asker, CheckFailed
from proxy.canary.check_bodies import TEXTS
from proxy.canary.measurement import Measurement
from proxy.canary.subject import Subject
from proxy.errors import UpstreamTimeout
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.router import Origin
from tests.support.drifting import URL, DriftingModel
from tests.support.fake_client import response
from tests.support.virtual_loop import virtually

SUBJECT = Subject("up", URL, "m", "m")


class Scripted(DriftingModel):
    """``change`` may replace any field of the n-th response's body, ``headers_of`` those of its head."""

    status_of_all: int = 200
    headers_of_all: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed

    def change(self, number: int, body: dict[str, Any]) -> object:
        return body

    async def embed(self, url: str, headers: CIMultiDict[str], body: bytes, **_: object) -> UpstreamResponse:
        made = await super().embed(url, headers, body)
        changed = self.change(len(self.calls) - 1, orjson.loads(made.body))
        return response(self.status_of_all, changed, **self.headers_of_all)


async def measure(model: DriftingModel, origin: Origin | None = None, *, subject: Subject = SUBJECT) -> Measurement:
    return await Asker(lambda *_: None).measure(origin or model.origin(), subject)


async def why_not(model: DriftingModel, **changes: Any) -> str:
    with pytest.raises(CheckFailed) as failed:
        await measure(model, model.origin(**changes))
    assert failed.value.detail == str(failed.value)
    return failed.value.detail


@virtually
async def test_each_text_is_asked_for_alone_and_all_in_one_batch() -> None:
    model = DriftingModel()
    measured = await measure(model)
    assert [call["input"] for call in model.calls] == [*TEXTS, list(TEXTS)]
    assert len(measured.alone) == len(measured.again) == len(TEXTS)
    assert measured.alone == measured.again
    assert measured.model == "m"
    assert measured.noise == 0


@virtually
async def test_an_upstream_without_lists_is_asked_for_each_text_twice() -> None:
    model = DriftingModel()
    fused = SUBJECT._replace(model="gemini-embedding-2")
    measured = await measure(model, model.origin("gemini"), subject=fused)
    assert [call["input"] for call in model.calls] == [*TEXTS, *TEXTS]
    assert measured.alone == measured.again


@virtually
async def test_the_request_is_the_proxys_own() -> None:
    model = DriftingModel()
    url = URL + "?api-version=1&key=secret"
    await measure(model, subject=SUBJECT._replace(url=url))
    assert {call["url"] for call in model.calls} == {URL + "?api-version=1"}
    (fields,) = {tuple(headers.items()) for headers in model.headers}
    assert dict(fields) == {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": f"embedding-proxy/{__version__} canary",
    }


@virtually
async def test_its_own_key_goes_before_that_of_the_upstream() -> None:
    for keys, sent in (({"key": "k"}, "k"), ({"canary_key": "c"}, "c"), ({"key": "k", "canary_key": "c"}, "c")):
        model = DriftingModel()
        await measure(model, model.origin(**keys))
        assert {headers["Authorization"] for headers in model.headers} == {f"Bearer {sent}"}


@virtually
async def test_each_response_is_billed() -> None:
    model = DriftingModel()
    bills: list[tuple[Subject, int]] = []
    await Asker(lambda subject, tokens: bills.append((subject, tokens))).measure(model.origin(), SUBJECT)
    assert bills == [(SUBJECT, 7)] * len(TEXTS) + [(SUBJECT, 7 * len(TEXTS))]


class Renamed(Scripted):
    """Its second response, and that to the batch, name other models."""

    def change(self, number: int, body: dict[str, Any]) -> object:
        return body | {"model": {1: "n", len(TEXTS): "o"}.get(number, "m")}


@virtually
async def test_responses_of_several_models_are_seen_in_the_name() -> None:
    assert (await measure(Renamed())).model == "m | n | o"


@virtually
async def test_a_failed_call_is_named_by_its_code() -> None:
    assert await why_not(DriftingModel(error=UpstreamTimeout)) == "upstream_timeout"


@virtually
async def test_a_check_takes_no_longer_than_five_minutes() -> None:
    assert await why_not(DriftingModel(is_hung=True)) == "timeout"
    assert asyncio.get_running_loop().time() == 300.0


@virtually
async def test_a_refusal_says_whether_there_was_a_key() -> None:
    for status in (401, 403):
        assert await why_not(DriftingModel(status=status)) == f"status {status}, asked without a key"
        for keys in ({"key": "k"}, {"canary_key": "c"}):
            assert await why_not(DriftingModel(status=status), **keys) == f"status {status}"
    assert await why_not(DriftingModel(status=404)) == "status 404"


@virtually
async def test_any_success_that_has_vectors_counts() -> None:
    model = Scripted()
    model.status_of_all = 201
    assert len((await measure(model)).alone) == len(TEXTS)
    model.status_of_all = 202
    assert await why_not(model) == "status 202"


@virtually
async def test_a_gateways_fallback_is_another_model() -> None:
    model = Scripted()
    model.headers_of_all = {"x_litellm_attempted_fallbacks": "1"}
    assert await why_not(model) == "the gateway's own fallback responded"
    model.headers_of_all = {"x_litellm_attempted_fallbacks": "0"}
    assert len((await measure(model)).alone) == len(TEXTS)


class Wrong(Scripted):
    """Its first response is not valid."""

    body: object = None

    def change(self, number: int, body: dict[str, Any]) -> object:
        return body if number else self.body


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"no JSON", "not-json"),
        ({"error": {"message": "a secret"}}, "error-in-200"),
        ({"data": [{"index": 0, "embedding": []}]}, "vector"),
        ({"data": [{"index": 0, "embedding": [1, 2]}], "model": "m" * 1025}, "model-name"),
    ],
)
def test_an_invalid_response_is_named_without_its_words(body: object, reason: str) -> None:
    @virtually
    async def run() -> None:
        model = Wrong()
        model.body = body
        assert (await why_not(model)).startswith(f"invalid response: {reason}")

    run()


@virtually
async def test_one_vector_that_cannot_be_stored_fails_the_check() -> None:
    model = Wrong()
    model.body = {"data": [{"index": 0, "embedding": [0, 0]}], "model": "m"}
    detail = await why_not(model)
    assert detail.startswith("invalid response: ")
    assert len(model.calls) <= 1 + len(TEXTS)
