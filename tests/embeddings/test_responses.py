"""Responses made from entries: what they say, save and count, parsed or by the bytes of the request."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from aiohttp.web import Response
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.cache.entry import Entry
from proxy.cache.memory import Memory
from proxy.embeddings.response_body import LARGE_BYTES
from proxy.embeddings.response_head import finish_head
from proxy.embeddings.responses import ResponseBuilder
from proxy.errors import ResponseTooLarge
from proxy.fetch.outcomes import EmbedResult, InvalidResponse
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.result import FetchResult
from proxy.http.bodies import BodyReader
from proxy.http.long_response import MAX_LONG_BYTES
from proxy.http.plain_response import AssembledResponse
from proxy.http.streamed import Streamed
from proxy.ledger.ledger import Ledger
from proxy.protocol import vectors
from proxy.protocol.records import Record
from proxy.protocol.response_spec import ResponseSpec
from proxy.protocol.vectors import Encoding
from proxy.reservation import MemoryReservation
from proxy.telemetry.metrics import Metrics
from proxy.tenant import Tenant
from tests.support.client_requests import client_request_for
from tests.support.fake_batcher import embedded
from tests.support.fake_client import FakeClient, origin_of, response
from tests.support.samples import samples

A, B, C = (bytes([n]) * 32 for n in range(3))
HEADERS = {"x-ratelimit-remaining": "7", "X-Note": "b", "X-Cache": "theirs", "Content-Type": "text/plain"}


def entry(*numbers: float, tokens: int = 2, model: str = "m-1") -> Entry:
    its = Record(
        vector=vectors.from_numbers(list(numbers)), model=model, tokens=tokens, tokens_exact=True, stored_at_s=0
    )
    return Entry.of(its)


def spec_of(*keys: bytes, encoding: Encoding = Encoding.FLOAT, **changes: Any) -> ResponseSpec:
    return ResponseSpec("m", encoding, keys, **changes)


def delivery(*, headers: dict[str, str] = HEADERS, tokens: int = 3, **changes: Any) -> EmbedResult:
    request = FetchRequest(client_request_for(["a"], [A]), [A], Policy(0.0))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "cost": 0.5}
    return embedded(request, relayed=CIMultiDict(headers), usage=usage, **changes)


class Made:
    def __init__(self, *, reports_full_usage: bool = False) -> None:
        self.metrics = Metrics(ledger=Ledger())
        self.metrics.admit_model("m")
        self.builder = ResponseBuilder(Memory(10**6), self.metrics, reports_full_usage=reports_full_usage)
        bodies = BodyReader(self.metrics, max_bytes=10**9, max_held_bytes=10**9)
        self.reservation: MemoryReservation = bodies.reserve(Tenant(b"t"))

    def hit(self, spec: ResponseSpec, found: dict[bytes, Entry], **changes: Any) -> AssembledResponse:
        more: dict[str, Any] = {"from_memory": len(found), "reservation": self.reservation} | changes
        made = self.builder.hit(spec, found, "search", **more)
        assert isinstance(made, AssembledResponse)
        return made

    def fetched(
        self, spec: ResponseSpec, found: dict[bytes, Entry], fetched: FetchResult, *, is_stored: bool = True
    ) -> AssembledResponse:
        made = self.builder.fetched(
            spec, found, fetched, "search",
            from_memory=len(found), reservation=self.reservation, is_stored=is_stored,
        )  # fmt: skip
        assert isinstance(made, AssembledResponse)
        return made

    @property
    def items(self) -> dict[str, float]:
        counted = {result: value for (result,), value in samples(self.metrics, "items_total", model="m").items()}
        row = self.metrics.row("search", "m")
        assert counted == {result.value: count for result, count in row.items.items() if count}
        return counted

    @property
    def saved(self) -> float:
        (saved,) = samples(self.metrics, "tokens_total", model="m", kind="saved").values()
        assert saved == self.metrics.row("search", "m").saved
        return saved


def json_of(made: AssembledResponse) -> dict[str, Any]:
    parsed: dict[str, Any] = orjson.loads(b"".join(made.parts))
    return parsed


FOUND = {A: entry(1.0, 0.5), B: entry(2.0, 0.5, tokens=5)}


def test_a_hit_has_its_items_in_order_and_says_what_it_saved() -> None:
    made = Made()
    answer = made.hit(spec_of(A, B, A), FOUND, from_memory=1)
    assert json_of(answer) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": embedding}
            for index, embedding in enumerate(([1.0, 0.5], [2.0, 0.5], [1.0, 0.5]))
        ],
        "model": "m-1",
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    assert (answer.headers["X-Cache"], answer.headers["Cache-Status"]) == ("HIT", "embedding-proxy; hit")
    assert answer.headers["X-Cache-Saved-Tokens"] == "9"
    assert made.items == {"memory": 1, "store": 1, "duplicate": 1}
    assert made.saved == 9


def test_usage_may_be_what_it_would_have_cost() -> None:
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    assert json_of(Made(reports_full_usage=True).hit(spec_of(A, B, A), FOUND))["usage"] == usage
    with_call = Made(reports_full_usage=True).hit(spec_of(A, B, A), FOUND, deliveries=[delivery()])
    assert json_of(with_call)["usage"] == usage | {"cost": 0.5}


def test_a_call_that_validated_the_credential_is_billed() -> None:
    made = Made()
    answer = made.hit(spec_of(A, B), FOUND, deliveries=[delivery(tokens=3)], detail="validated")
    assert json_of(answer)["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "cost": 0.5}
    assert answer.headers["Cache-Status"] == "embedding-proxy; hit; detail=validated"
    assert made.saved == 4
    made = Made()
    assert made.hit(spec_of(A), FOUND, deliveries=[delivery(tokens=3)]).headers["X-Cache-Saved-Tokens"] == "0"


def test_a_request_that_is_keyed_as_a_whole_says_so() -> None:
    answer = Made().hit(spec_of(A, is_keyed_whole=True), FOUND)
    assert answer.headers["Cache-Status"] == "embedding-proxy; hit; detail=whole-body"


def test_a_response_that_has_an_id_gets_a_new_one_each_time() -> None:
    made = Made()
    ids = {json_of(made.hit(spec_of(A, has_id=True), FOUND))["id"] for _ in range(2)}
    assert len(ids) == 2


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("from_memory", [0, 1, 2])
@pytest.mark.parametrize("changes", [{}, {"is_keyed_whole": True}])
def test_the_bytes_of_a_hit_are_those_of_a_parsed_one_and_count_the_same(
    encoding: Encoding, from_memory: int, changes: dict[str, Any]
) -> None:
    spec, parsed, unparsed = spec_of(A, B, A, encoding=encoding, **changes), Made(), Made()
    expected = parsed.hit(spec, FOUND, from_memory=from_memory)
    row = unparsed.metrics.row("search", "m")
    parts = unparsed.builder.bytes_of_hit(spec, FOUND, row, from_memory=from_memory, request_id="id", cors="X: y\r\n")
    assert isinstance(parts, list)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    assert body == b"".join(expected.parts)
    status, *fields = head.decode().split("\r\n")
    assert status == "HTTP/1.1 200 OK"
    named = dict(field.split(": ", 1) for field in fields)
    assert named | dict(expected.headers) == named
    assert named["Content-Length"] == str(len(body))
    assert (named["X-Request-Id"], named["X"]) == ("id", "y")
    assert unparsed.items == parsed.items
    assert unparsed.saved == parsed.saved


FETCHED = {B: entry(2.0, 0.5, tokens=5)}


def result(*deliveries: EmbedResult, asked: Sequence[bytes] = (B,), **changes: Any) -> FetchResult:
    return FetchResult(entries=FETCHED, deliveries=list(deliveries), asked=frozenset(asked), **changes)


def test_a_fetched_response_says_what_was_cached_and_what_was_asked_for() -> None:
    made = Made()
    answer = made.fetched(spec_of(A, B, A), {A: FOUND[A]}, result(delivery(status=201)))
    assert (answer.status, answer.headers["X-Cache"]) == (201, "PARTIAL")
    assert answer.headers["Cache-Status"] == "embedding-proxy; fwd=partial; fwd-status=201; stored"
    assert (answer.headers["X-Cache-Hits"], answer.headers["X-Cache-Saved-Tokens"]) == ("2", "4")
    assert json_of(answer)["usage"]["prompt_tokens"] == 3
    assert made.items == {"memory": 1, "upstream": 1, "duplicate": 1}
    made = Made()
    answer = made.fetched(spec_of(B), {}, result(delivery()), is_stored=False)
    assert answer.headers["Cache-Status"] == "embedding-proxy; fwd=miss; fwd-status=200"
    assert answer.headers["X-Cache"] == "MISS"
    assert "X-Cache-Hits" not in answer.headers


def test_what_another_request_asked_for_is_joined_and_saved() -> None:
    made = Made()
    answer = made.fetched(spec_of(B, is_keyed_whole=True), {}, result(asked=()))
    assert answer.headers["Cache-Status"] == (
        "embedding-proxy; fwd=miss; fwd-status=200; stored; collapsed; detail=whole-body"
    )
    assert (made.items, made.saved) == ({"joined": 1}, 5)
    assert json_of(answer)["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


def test_the_upstreams_header_fields_are_in_the_response_and_stay_as_they_are() -> None:
    given = delivery()
    own = Made().fetched(spec_of(B), {}, result(given))
    assert (own.headers["X-Note"], own.headers["x-ratelimit-remaining"]) == ("b", "7")
    assert own.headers.getall("X-Cache") == ["MISS"]
    assert own.headers["Content-Type"] == "application/json"
    assert given.relayed == CIMultiDict(HEADERS)  # other responses have them, too


def test_those_of_a_merged_call_go_before_those_of_a_call_for_this_request_alone() -> None:
    merged = delivery(headers={"x-ratelimit-remaining": "6"}, is_unmerged=False)
    answer = Made().fetched(spec_of(B), {}, result(delivery(), merged))
    assert answer.headers["x-ratelimit-remaining"] == "6"
    assert "X-Note" not in answer.headers


def test_further_fields_are_for_the_client_whose_own_body_it_was() -> None:
    def shown(*deliveries: EmbedResult) -> bool:
        return "note" in json_of(Made().fetched(spec_of(B), {}, result(*deliveries)))

    own = delivery(extra_fields={"note": 1})
    assert shown(own)
    assert not shown(delivery(extra_fields={"note": 1}, is_own_body=False))
    assert not shown(own, own)


@pytest.mark.parametrize("encoding", Encoding)
def test_an_embedding_that_can_not_be_stored_is_in_its_place(encoding: Encoding) -> None:
    made = Made()
    unusable = {
        A: InvalidResponse(response(200, {}), b"", "vector", True, embedding=b'"odd"'),
        C: InvalidResponse(response(200, {}), b"", "vector", True),
    }
    answer = made.fetched(spec_of(A, B, C, encoding=encoding), {}, result(delivery(), unusable=unusable))
    odd, good, missing = (datum["embedding"] for datum in json_of(answer)["data"])
    assert (odd, missing) == ("odd", None)
    assert good == (FETCHED[B].base64.decode() if encoding is Encoding.BASE64 else [2.0, 0.5])
    assert made.items == {"upstream": 3}


def test_the_model_is_what_the_upstream_called_it() -> None:
    def named(*models: str) -> str:
        entries = {bytes([n]) * 32: entry(1.0, model=model) for n, model in enumerate(models)}
        model: str = json_of(Made().hit(spec_of(*entries), entries))["model"]
        return model

    assert (named("m-1"), named("", "m-2"), named("")) == ("m-1", "m-2", "m")


@pytest.mark.parametrize("encoding", Encoding)
def test_a_large_response_is_streamed_and_its_memory_is_reserved(encoding: Encoding) -> None:
    made = Made()
    large = {A: entry(*[0.1] * 4096)}
    few, many = spec_of(*[A] * 10, encoding=encoding), spec_of(*[A] * 400, encoding=encoding)
    assert not made.builder.is_large(few, large)
    assert made.builder.is_large(many, large)
    answer = made.builder.hit(many, large, "search", from_memory=1, reservation=made.reservation)
    assert isinstance(answer, Streamed)
    body = b"".join(answer.parts)
    assert len(body) > LARGE_BYTES
    assert len(orjson.loads(body)["data"]) == 400
    assert answer.content_length == (len(body) if encoding is Encoding.BASE64 else None)


def test_a_large_fetched_response_is_streamed_unless_an_item_has_other_json() -> None:
    made, large = Made(), entry(*[0.1] * 4096)
    spec, fetched = spec_of(*[B] * 400), FetchResult(entries={B: large}, deliveries=[delivery(status=201)])
    answer = made.builder.fetched(spec, {}, fetched, None, from_memory=0, reservation=made.reservation, is_stored=True)
    assert isinstance(answer, Streamed)
    assert answer.status == 201
    assert len(orjson.loads(b"".join(answer.parts))["data"]) == 400
    assert answer.content_length is None
    odd = {A: InvalidResponse(response(200, {}), b"", "vector", True)}
    fetched = FetchResult(entries={B: large}, deliveries=[delivery()], unusable=odd)
    assert len(json_of(made.fetched(spec_of(A, *[B] * 400), {}, fetched))["data"]) == 401


@pytest.mark.parametrize(("items", "is_known"), [(100, True), (400, False)])
def test_the_length_of_numbers_is_known_if_few_enough_texts_are_in_memory(items: int, *, is_known: bool) -> None:
    made, large = Made(), entry(*[0.1] * 4096)
    text = large.numbers()
    assert (len(text) * items <= MAX_LONG_BYTES) is is_known
    spec, fetched = spec_of(*[B] * items), FetchResult(entries={B: large}, deliveries=[delivery()])
    answer = made.builder.fetched(spec, {}, fetched, None, from_memory=0, reservation=made.reservation, is_stored=True)
    assert isinstance(answer, Streamed)
    body = b"".join(answer.parts)
    assert body.count(text) == items
    assert answer.content_length == (len(body) if is_known else None)
    assert answer.part_bytes == (len(body) // (2 * items) if is_known else None)


def test_a_response_that_no_client_could_read_is_refused() -> None:
    made = Made()
    large = {A: entry(*[0.1] * 4096)}
    with pytest.raises(ResponseTooLarge, match="Send fewer items"):
        made.builder.is_large(spec_of(*[A] * 40_000), large)


def test_every_response_has_an_id_and_no_cookie_of_the_proxys_key() -> None:
    received = CIMultiDictProxy(CIMultiDict[str]())
    for key, cookie in ((None, True), ("held", False)):
        answer = Response(headers={"Set-Cookie": "session"})
        finish_head(answer, received, upstream=origin_of(FakeClient(), key=key), request_id="own")
        assert ("Set-Cookie" in answer.headers, answer.headers["X-Request-Id"]) == (cookie, "own")
    answer = Response(headers={"X-Request-Id": "theirs"})
    finish_head(answer, received, upstream=None, request_id="own")
    assert answer.headers["X-Request-Id"] == "theirs"
