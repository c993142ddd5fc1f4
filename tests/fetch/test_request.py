"""What is fetched: which requests are alike, and the parts of one."""

import orjson
import pytest
from multidict import CIMultiDict

from proxy.access.validations import CredentialId
from proxy.fetch.request import FetchRequest, Policy
from proxy.protocol.embedding_request import parse_request
from proxy.protocol.provider import Limits
from proxy.protocol.providers import GENERIC
from proxy.protocol.response_spec import ResponseSpec
from proxy.protocol.vectors import Encoding
from proxy.telemetry.tracing import NO_SPAN
from tests.support.client_requests import client_request_for
from tests.support.fake_client import FakeClient, origin_of

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
ORIGIN = origin_of(FakeClient(), "east")
OWNED = origin_of(FakeClient(), "east", key="held")
POLICY = Policy(5.0)


def request(*, wanted: list[bytes] | None = None, **more: object) -> FetchRequest:
    """For three items, of which the last two are alike."""
    asked = client_request_for(["x", "yy", "yy"], [A, B, B], origin=ORIGIN, **more)  # type: ignore[arg-type]
    return FetchRequest(asked, [A, B] if wanted is None else wanted, POLICY)


def test_a_request_for_every_item_of_the_body_once_is_the_body_itself() -> None:
    asked = client_request_for(["x", "yy"], [A, B], origin=ORIGIN)
    whole = FetchRequest(asked, [A, B], POLICY)
    assert whole.is_whole
    assert whole.body == asked.parsed.body
    assert asked.is_own_body(whole.body)
    assert whole.items is asked.parsed.items


def test_a_repeated_item_is_sent_once_in_a_body_of_the_proxys() -> None:
    reduced = request()
    assert not reduced.is_whole
    assert reduced.items == ["x", "yy"]
    assert orjson.loads(reduced.body) == {"model": "m", "input": ["x", "yy"]}
    assert not reduced.client_request.is_own_body(reduced.body)


def test_its_size_is_that_of_its_items_and_body() -> None:
    one = request(wanted=[B])
    assert one.size == Limits(1, one.tokens, len(one.body))
    assert one.tokens == sum(request(wanted=[key]).tokens for key in (A, B)) - request(wanted=[A]).tokens
    assert len(request().weights) == 2


def test_a_part_has_its_own_items_and_the_same_policy() -> None:
    of = request()
    _ = of.body, of.tokens
    for part in (of.only([B]), of.part(slice(1, 2))):
        assert (part.keys, part.items, part.policy) == ([B], ["yy"], POLICY)
        assert orjson.loads(part.body)["input"] == ["yy"]
        assert part.tokens < of.tokens
    assert of.only([A, B]) is of
    assert of.only([]).keys == []
    assert of.keys == [A, B]


def test_a_part_that_is_asked_for_alone_is_not_merged() -> None:
    alone = request().alone(A)
    assert (alone.keys, alone.policy) == ([A], POLICY._replace(may_merge=False))


def test_what_is_keyed_as_a_whole_has_no_smaller_part_and_one_lease() -> None:
    asked = client_request_for(["x", "yy"], [A, B], is_keyed_whole=True, origin=ORIGIN)
    whole = FetchRequest(asked, [A, B], POLICY)
    assert whole.only([B]) is whole
    assert whole.lease_keys == [A]
    assert whole.covered_by([A]) == [A, B]
    assert whole.covered_by([]) == []
    by_item = request()
    assert by_item.lease_keys == [A, B]
    assert by_item.covered_by([B]) == [B]


def test_policies_for_a_refresh_and_for_one_client_alone() -> None:
    assert POLICY.refreshing() == Policy(5.0, may_join=False, overwrite=True)
    assert POLICY.private() == Policy(5.0, may_join=False, is_stored=False)


def test_the_body_is_sent_uncompressed_and_without_hop_by_hop_fields() -> None:
    asked = client_request_for(
        ["x"], [A], headers={"Content-Encoding": "gzip", "Connection": "X-Hop", "X-Hop": "1", "X-A": "2"}
    )
    assert dict(asked.headers) == {"X-A": "2"}
    assert asked.received["Content-Encoding"] == "gzip"


@pytest.mark.parametrize(
    "change",
    [{"dimensions": 8}, {"headers": {"Authorization": "Bearer 2"}}, {"headers": {"X-Route": "eu"}}, {"model": "n"}],
)
def test_requests_that_differ_in_more_than_their_items_are_not_merged(change: dict[str, object]) -> None:
    plain = client_request_for(["x"], [A], origin=ORIGIN)
    other = client_request_for(["x"], [A], origin=ORIGIN, **change)  # type: ignore[arg-type]
    assert plain.group == client_request_for(["z", "zz"], [B, C], origin=ORIGIN, headers={"X-Request-Id": "7"}).group
    assert other.group != plain.group


def test_pages_of_different_origins_are_not_merged() -> None:
    groups = {
        client_request_for(["x"], [A], origin=ORIGIN, headers=headers).group
        for headers in ({}, {"Origin": "https://a"}, {"Origin": "https://b"})
    }
    assert len(groups) == 3


def test_rate_limits_are_those_of_upstream_credential_and_model() -> None:
    asked = client_request_for(["x"], [A], origin=ORIGIN, credentials=b"one")
    assert asked.lane_name == ("east", b"one", b"m")
    assert client_request_for(["x"], [A], origin=OWNED, credentials=b"one").lane_name == ("east", b"", b"m")


@pytest.mark.parametrize(("model", "is_hashed"), [("m" * 32, False), ("m" * 33, True)])
def test_a_long_model_takes_no_more_memory_than_a_short_one(model: str, is_hashed: bool) -> None:
    name = client_request_for(["x"], [A], origin=ORIGIN, model=model).lane_name[2]
    assert len(name) == 32
    assert (name != model.encode()) is is_hashed


def test_of_equal_keys_the_first_item_counts() -> None:
    asked = client_request_for(["x", "first", "second"], [A, B, B])
    assert asked.items([B, A]) == ["first", "x"]


def test_a_request_like_another_has_its_own_items_and_field_values() -> None:
    given = {"Authorization": "Bearer k", "X-Request-Id": "1", "Connection": "X-Hop", "X-Hop": "h"}
    first = client_request_for(["x"], [A], origin=ORIGIN, headers=given)
    body = {"model": "m", "input": ["y"]}
    parsed = parse_request(orjson.dumps(body), body, GENERIC)
    spec = ResponseSpec("m", Encoding.FLOAT, (B,))
    fields = {"X-Request-Id": "2", "X-Hop": "i"}
    other = first.like(parsed, spec, first.reservation, NO_SPAN, fields)
    assert (other.parsed.items, other.spec.keys) == (["y"], (B,))
    assert (other.headers["X-Request-Id"], other.received["X-Hop"]) == ("2", "i")
    assert "X-Hop" not in other.headers
    assert (first.headers["X-Request-Id"], first.received["X-Request-Id"]) == ("1", "1")
    assert (other.group, other.lane_name) == (first.group, first.lane_name)
    assert other.scope_fingerprint == first.scope_fingerprint
    assert other.limit_wait is not first.limit_wait
    assert other.credential.id == CredentialId(b"tenant", b"credentials")


def test_other_header_fields_do_not_change_the_request_itself() -> None:
    first = client_request_for(["x"], [A], origin=ORIGIN, headers={"X-A": "1"})
    other = first.with_headers(CIMultiDict({"X-B": "2"}))
    assert dict(other.headers) == {"X-B": "2"}
    assert dict(first.headers) == {"X-A": "1"}
    assert other.parsed is first.parsed
