"""The identity in an assertion stays the same when a proxy in front renews it."""

import json

import pybase64
import pytest

from proxy.protocol.assertions import scope_of

_CERTIFICATE = "x-forwarded-client-cert"
_TOKEN = "x-goog-iap-jwt-assertion"
_ISTIO = 'By=spiffe://c.local/ns/a/sa/proxy;Hash={};Subject="";URI=spiffe://c.local/ns/a/sa/{}'


def jwt(claims: object, *, signature: str = "sig", padding: str = "") -> str:
    payload = pybase64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJFUzI1NiJ9.{payload}{padding}.{signature}"


def scope(name: str, value: str) -> list[tuple[str, str]]:
    return scope_of([(name, value)])


def stands_for_itself(name: str, value: str) -> bool:
    return scope(name, value) == [(name, value)]


@pytest.mark.parametrize(
    ("one", "renewed"),
    [
        (_ISTIO.format("1a", "client"), _ISTIO.format("2b", "client")),
        ('Hash=1;Subject="/C=US/CN=A;B,C"', 'Hash=2;Subject="/C=US/CN=A;B,C"'),
        ('hash=1;Cert="%0A;";Chain="c";DNS=a;DNS=b', "hash=2;DNS=a;DNS=b"),
        ("Hash=1;URI=a,By=p;Hash=1;URI=b", "Hash=2;URI=a,By=p;Hash=2;URI=b"),
        (r'Hash=1;Subject="a\";Hash=3"', r'Hash=2;Subject="a\";Hash=3"'),
    ],
)
def test_a_renewed_certificate_names_the_same_client(one: str, renewed: str) -> None:
    assert scope(_CERTIFICATE, one) == scope(_CERTIFICATE, renewed)
    assert not stands_for_itself(_CERTIFICATE, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (_ISTIO.format("1a", "client"), _ISTIO.format("1a", "other")),
        ('Hash=1;Subject="/CN=A"', 'Hash=1;Subject="/CN=B"'),
        ("Hash=1;URI=a,Hash=1;URI=b", "Hash=1;URI=b,Hash=1;URI=a"),
        ("Hash=1;URI=a", "Hash=1;DNS=a"),
        (r'Hash=1;Subject="a\";Hash=3"', r'Hash=1;Subject="a\";Hash=4"'),
    ],
)
def test_certificates_of_two_clients_name_two(one: str, other: str) -> None:
    assert scope(_CERTIFICATE, one) != scope(_CERTIFICATE, other)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "v",
        "Hash=1",
        'Hash=1;Subject="";URI=',
        "Hash=1;URI=a,Hash=2",
        'URI="a;Hash=1',
        "URI=a,",
        ",URI=a",
        "URI",
        "=a",
    ],
)
def test_a_certificate_without_identity_is_unchanged(value: str) -> None:
    assert stands_for_itself(_CERTIFICATE, value)


CLAIMS = {"iss": "https://cloud.google.com/iap", "sub": "accounts.google.com:1", "aud": "/p/1", "email": "a@b"}
TIMES = {"exp": 1, "iat": 1, "nbf": 1, "jti": "a"}
LATER = {"exp": 2, "iat": 2, "nbf": 2, "jti": "b"}


@pytest.mark.parametrize(
    "name",
    ["x-goog-iap-jwt-assertion", "x-amzn-oidc-data", "cf-access-jwt-assertion", "x-pomerium-jwt-assertion",
     "teleport-jwt-assertion", "x-forwarded-access-token"],
)  # fmt: skip
def test_a_renewed_token_names_the_same_client(name: str) -> None:
    renewed = jwt({**LATER, **dict(reversed(CLAIMS.items()))}, signature="other")
    assert scope(name, jwt({**CLAIMS, **TIMES})) == scope(name, renewed)


def test_padding_of_a_token_does_not_matter() -> None:
    assert scope(_TOKEN, jwt({"sub": "ab"})) == scope(_TOKEN, jwt({"sub": "ab"}, padding="=="))


@pytest.mark.parametrize(
    "changed",
    [{"sub": "accounts.google.com:2"}, {"iss": "https://evil.example"}, {"aud": "/p/2"}, {"groups": ["admins"]}],
)
def test_tokens_that_differ_in_a_claim_name_two(changed: dict[str, object]) -> None:
    assert scope(_TOKEN, jwt({**CLAIMS, **TIMES})) != scope(_TOKEN, jwt({**CLAIMS, **changed, **TIMES}))


def test_service_tokens_without_a_subject_differ_by_their_name() -> None:
    one, other = ({"sub": "", "common_name": name, **TIMES} for name in ("a.access", "b.access"))
    assert scope("cf-access-jwt-assertion", jwt(one)) != scope("cf-access-jwt-assertion", jwt(other))


def test_large_numbers_in_a_token_keep_their_digits() -> None:
    assert scope(_TOKEN, jwt({"sub": 10**25})) != scope(_TOKEN, jwt({"sub": 10**25 + 1}))


@pytest.mark.parametrize(
    "value",
    ["", "v", "a.b", "a.b.c", "a.b.c.d", jwt([1]), jwt("x"), jwt({**TIMES}), jwt({"iss": "i", "sub": ""}),
     "a.\udcff.c", "a.é.c", f"a.{pybase64.b64encode(b'[' * 60_000).decode()}.c", jwt(CLAIMS).replace(".", ".!")],
    ids=range(13),
)  # fmt: skip
def test_a_token_without_identity_is_unchanged(value: str) -> None:
    assert stands_for_itself(_TOKEN, value)


def test_a_client_can_not_send_an_extracted_identity() -> None:
    ((name, value),) = scope(_TOKEN, jwt(CLAIMS))
    assert " " in name
    assert scope(_TOKEN, value) != [(name, value)]


@pytest.mark.parametrize("name", ["authorization", "api-key", "x-forwarded-user", "cookie", "", "x-amzn-oidc-identity"])
def test_other_fields_are_unchanged(name: str) -> None:
    assert stands_for_itself(name, jwt(CLAIMS))
    assert stands_for_itself(name, "Hash=1;URI=a")
