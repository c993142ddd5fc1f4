"""Query fields are credentials by the rule for header fields, in any spelling."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocol import query
from proxy.protocol.headers import is_credential

NAMES = (
    "key", "Key", "KEY", "api_key", "api-key", "apikey", "apiKey", "APIKey", "aPiKeY", "access_token", "token", "jwt",
    "subscription-key", "Subscription-Key", "code", "sig", "Signature", "X-Amz-Signature", "X-Amz-Credential",
    "X-Amz-Security-Token", "AWSAccessKeyId", "oauth_consumer_key", "client_secret", "password", "passwd", "$key",
    "%24key", "quotaUser", "$userProject", "$httpHeaders", "openai-organization", "tenant", "key[]", " key", "key%00",
    "k%65y", "%6B%65%79", "k%2565y", "api+key", "api.key", "accesskey", "Ocp-Apim-Subscription-Key",
)  # fmt: skip
OTHERS = (
    "api-version", "model", "limit", "after", "monkey", "keyboard", "decode", "author", "max_tokens", "signal",
    "design", "pageToken", "page_token", "next_token", "NextToken", "$skiptoken", "nextPageToken", "continuation-token",
    "idempotency_key", "encoding", "zip_code", "passage", "purpose",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_is_a_credential_is_left_out(name: str) -> None:
    field = f"{name}=v?=%26"
    for target, rest in (
        (f"/v1/x?{field}", "/v1/x"),
        (f"/v1/x?{field}&a=1", "/v1/x?a=1"),
        (f"/v1/x?a=1&{field}&b", "/v1/x?a=1&b"),
        (f"/v1/x?a=1&b&{field}", "/v1/x?a=1&b"),
        (f"/v1/x?a=1;{field};b=2&{field}&c", "/v1/x?a=1;b=2&c"),
        (f"/v1/x?&&a=1&{field}&", "/v1/x?&&a=1&"),
        (f"/v1/x?{name}=&a=1", "/v1/x?a=1"),
    ):
        assert query.without_credentials(target) == rest
        assert query.without_credentials("https://h" + target) == "https://h" + rest
    found = query.credentials(f"/v1/x?{field}&a=1&{name}=2&{name}=")
    assert [value for _, value in found] == [field, f"{name}=2", f"{name}="]
    assert all(called.startswith("?") for called, _ in found)


@pytest.mark.parametrize("name", OTHERS)
def test_other_fields_stay(name: str) -> None:
    target = f"/v1/x?{name}=key&a=1"
    assert query.without_credentials(target) is target
    assert query.keyed(target) is target
    assert query.credentials(target) == []


@pytest.mark.parametrize("target", ["/v1/key=1", "/v1/x", "/v1/x?", "/v1/x?key", "/v1/x?a=key=1", "/key=1&token=2?b"])
def test_a_target_without_such_fields_stays_as_it_is(target: str) -> None:
    assert query.without_credentials(target) is target
    assert query.credentials(target) == []


def test_an_ambiguous_name_is_part_of_keys_unchanged() -> None:
    assert query.keyed("https://h/x?code=fr&key=1&sig=2&a=3") == "https://h/x?code=fr&sig=2&a=3"


@given(st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True).filter(lambda name: not name.endswith("-")))
def test_names_of_credential_header_fields_are_credentials_in_the_query(name: str) -> None:
    if is_credential(name) and not query._PAGE_TOKENS.fullmatch(name):
        for written in (name, name.upper(), name.replace("-", "_"), "".join(f"%{ord(letter):02X}" for letter in name)):
            assert query.without_credentials(f"/x?{written}=v") == "/x"


@given(
    st.lists(
        st.sampled_from([*NAMES, *OTHERS]).map(lambda name: f"{name}={quote(name)}") | st.text("a&;=%?+#"), max_size=6
    )
)
def test_the_other_fields_keep_their_order(fields: list[str]) -> None:
    target = "/v1/x?" + "&".join(fields)
    rest = query.without_credentials(target)
    assert query.credentials(rest) == []
    assert query.without_credentials(rest) == rest
    names = [field.partition("=")[0] for field in fields if "=" in field]
    kept = [name for name in OTHERS if name in names]
    assert all(f"{name}=" in rest for name in kept)


def test_a_query_that_signs_the_body_is_detected() -> None:
    assert query.is_signed("/x?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=1")
    assert not query.is_signed("/x?X-Amz-Date=1")
