"""The keys of logged requests."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.analysis.call import Call
from proxy.analysis.identifier import Identifier
from proxy.config.settings import UpstreamSetting
from proxy.errors import InvalidRequest
from proxy.labels import BypassReason
from proxy.protocol.bypass import Bypass
from proxy.protocol.providers import PROVIDERS

UPSTREAM = UpstreamSetting(name="here", base_url="https://api.example.com/v1")
INPUTS = st.one_of(
    st.sampled_from(["a", "b", "", "a:b"]),
    st.lists(st.sampled_from(["a", "b", ""]), max_size=4),
    st.lists(st.integers(0, 9), max_size=3),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=3),
    st.just([{"text": "a"}]),
)
FIELDS = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", "n", 1, "x-colbert", "gemini-embedding-2"]), "input": INPUTS},
    optional={
        "dimensions": st.sampled_from([1, True, 8, None]),
        "encoding_format": st.sampled_from(["float", "base64", "other"]),
        "user": st.just("u"),
        "unknown": st.sampled_from([1, True, [1]]),
    },
)


def keys_of(identifier: Identifier, call: Call) -> list[bytes] | BypassReason:
    try:
        return identifier.identify(call).keys
    except Bypass as bypass:
        return bypass.reason


@given(st.sampled_from(sorted(PROVIDERS)), st.lists(FIELDS, min_size=2, max_size=8))
def test_requests_that_are_alike_have_the_keys_that_they_have_alone(
    provider: str, bodies: list[dict[str, Any]]
) -> None:
    setting = UpstreamSetting(name="here", base_url="https://api.example.com/v1", provider=PROVIDERS[provider])
    together = Identifier(setting)
    for fields in bodies:
        for body in (None, orjson.dumps(fields)):
            call = Call(fields, body)
            assert keys_of(together, call) == keys_of(Identifier(setting), call)


def test_members_of_one_name_are_found_in_alike_requests() -> None:
    identifier = Identifier(UPSTREAM)
    first = b'{"model":"m","input":"a"}'
    keys_of(identifier, Call(orjson.loads(first), first))
    for body in (b'{"model":"n","model":"m","input":"a"}', b'{"model" :"n","model" :"m","input":"a"}'):
        assert keys_of(identifier, Call(orjson.loads(body), body)) is BypassReason.DUPLICATE_KEY


def test_each_credential_has_entries_of_its_own_unless_they_are_shared() -> None:
    one, other = (
        Call({"model": "m", "input": "a"}, headers=(("Authorization", f"Bearer {key}"), ("traceparent", key)))
        for key in ("k1", "k2")
    )
    own, shared = Identifier(UPSTREAM), Identifier(UPSTREAM, shares_all=True)
    held = Identifier(UpstreamSetting(name="here", base_url="https://api.example.com/v1", key="secret"))
    assert keys_of(own, one) != keys_of(own, other)
    assert keys_of(shared, one) == keys_of(shared, other)
    assert keys_of(held, one) == keys_of(held, other)


@pytest.mark.parametrize(
    ("headers", "target", "reason"),
    [
        ((("Content-Type", "text/plain"),), "/v1/embeddings", BypassReason.CONTENT_TYPE),
        ((("Content-Encoding", "br"),), "/v1/embeddings", BypassReason.CONTENT_ENCODING),
        ((("Content-Digest", "sha-256=:x:"),), "/v1/embeddings", BypassReason.SIGNED_BODY),
        ((), "/api/embed", BypassReason.OTHER_ROUTE),
    ],
)
def test_what_the_proxy_relays_has_no_keys_but_a_reason(
    headers: tuple[tuple[str, str], ...], target: str, reason: BypassReason
) -> None:
    call = Call({"model": "m", "input": "a"}, headers=headers, target=target)
    assert keys_of(Identifier(UPSTREAM), call) is reason


def test_upstreams_are_chosen_by_model() -> None:
    routed = UpstreamSetting(name="j", base_url="https://j.example.com/v1", models=("jina*",))
    call = Call({"model": "jina-v3", "input": "a"})
    assert keys_of(Identifier(UPSTREAM, [routed]), call) != keys_of(Identifier(UPSTREAM), call)
    with pytest.raises(InvalidRequest):
        Identifier(UPSTREAM, [routed]).identify(Call({"input": "a"}))
