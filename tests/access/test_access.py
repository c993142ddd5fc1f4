"""Which requests are admitted, whose they are, and which clients share entries."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.access.access import EVERYBODY, OWN_KEY, Access, Admission
from proxy.access.client_keys import ClientKeys
from proxy.access.pseudonyms import Pseudonyms
from proxy.access.validations import Credential, CredentialScope, Validations
from proxy.errors import Unauthorized
from proxy.protocol.cors import Cors
from tests.support.fake_client import FakeClient, origin_of
from tests.support.guarded import Clock

ORIGIN = origin_of(FakeClient())
SCOPE = CredentialScope("http://one/v1/embeddings", "m")


def headers(*fields: tuple[str, str], **more: str) -> CIMultiDictProxy[str]:
    named = ((name.replace("_", "-"), value) for name, value in more.items())
    return CIMultiDictProxy(CIMultiDict([*fields, *named]))


def access(clock: Clock, **changes: Any) -> tuple[Access, Validations]:
    validations = Validations(ttl_s=600.0, clock=clock)
    settings: dict[str, Any] = {"shares_all": False, "owns_key": False, "client_keys": None} | changes
    return Access(validations=validations, **settings), validations


@pytest.fixture
def listed(tmp_path: Path) -> ClientKeys:
    """A list of the clients search (key one) and index (key two)."""
    path = tmp_path / "clients"
    hashes = ((name, sha256(key.encode()).hexdigest()) for name, key in (("search", "one"), ("index", "two")))
    path.write_text("".join(f"{name} sha256:{digest} 2026-01-01\n" for name, digest in hashes))
    return ClientKeys(path)


def test_without_a_list_everybody_is_admitted_under_no_name(clock: Clock) -> None:
    for shares_all in (False, True):
        admitting, _ = access(clock, shares_all=shares_all)
        assert admitting.admit(headers(Origin="https://page", Host="evil")) == Admission(0, None)


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        ([("Authorization", "Bearer one")], "search"),
        ([("Authorization", "bearer   two ")], "index"),
        ([("x-api-key", "two")], "index"),
        ([("api-key", "one")], "search"),
        ([("Authorization", "Bearer none"), ("Authorization", "Bearer two")], "index"),
        ([("Authorization", "Basic one"), ("x-api-key", "two")], "index"),
        ([("Authorization", "Bearer one"), ("x-api-key", "two")], "search"),
    ],
)
def test_a_client_is_known_by_any_field_that_has_its_key(
    clock: Clock, listed: ClientKeys, fields: list[tuple[str, str]], client: str
) -> None:
    admitting, _ = access(clock, owns_key=True, client_keys=listed)
    assert admitting.admit(headers(*fields)).client == client


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [("Authorization", "one")],
        [("Authorization", "Basic one")],
        [("Authorization", "Bearer one two")],
        [("Cookie", "one")],
    ],
)
def test_whoever_has_no_key_of_the_list_is_refused(
    clock: Clock, listed: ClientKeys, fields: list[tuple[str, str]]
) -> None:
    admitting, _ = access(clock, owns_key=True, client_keys=listed)
    with pytest.raises(Unauthorized, match="embedding-proxy keys add"):
        admitting.admit(headers(*fields))


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", "[::1]"])
def test_a_proxy_with_a_key_and_no_list_admits_programs_on_this_machine(clock: Clock, host: str) -> None:
    admitting, _ = access(clock, owns_key=True)
    admitting.admit(headers(Host=host))
    admitting.admit(headers(Host=host, Sec_Fetch_Site="none"))
    admitting.admit(headers(Host=host, Sec_Fetch_Site="same-origin"))


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "10.0.0.1:80",
        "localhost:evil",
        "[::2]:80",
        "::1",
    ],
)
def test_it_refuses_names_that_may_have_been_made_to_mean_this_machine(clock: Clock, host: str) -> None:
    admitting, _ = access(clock, owns_key=True)
    for admit in (admitting.admit, admitting.admit_preflight):
        with pytest.raises(Unauthorized, match="localhost only"):
            admit(headers(Host=host))


@pytest.mark.parametrize(
    "fields",
    [{"Origin": "https://page"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}],
)
def test_it_refuses_web_pages_that_the_operator_does_not_list(clock: Clock, fields: dict[str, str]) -> None:
    admitting, _ = access(clock, owns_key=True, cors_origins=frozenset({"https://listed"}))
    for admit in (admitting.admit, admitting.admit_preflight):
        with pytest.raises(Unauthorized, match="--cors-origins"):
            admit(headers(Host="localhost", **fields))
    admitting.admit(headers(Host="localhost", Origin="https://listed", Sec_Fetch_Site="cross-site"))


def test_with_a_list_pages_are_admitted_by_their_key(clock: Clock, listed: ClientKeys) -> None:
    admitting, _ = access(clock, owns_key=True, client_keys=listed)
    admitting.admit_preflight(headers(Origin="https://page", Host="evil"))
    assert admitting.admit(headers(Origin="https://page", Host="evil", Authorization="Bearer one")).client == "search"


def test_the_version_changes_with_the_list_and_with_epochs(clock: Clock, listed: ClientKeys) -> None:
    admitting, _ = access(clock, owns_key=True, client_keys=listed)
    before = admitting.admit(headers(Authorization="Bearer one")).access_version
    admitting.outdate_requests()
    assert admitting.access_version == before + 1
    listed.reload()
    assert admitting.admit(headers(Authorization="Bearer one")).access_version > before + 1


def test_upstream_requests_have_the_clients_credentials_or_the_proxys(clock: Clock) -> None:
    given = headers(Authorization="Bearer k", X_Route="eu")
    own, _ = access(clock)
    identity = own.identity(given, "/v1/embeddings?key=q")
    assert [name for name, _ in identity.credentials] == ["authorization", "?key"]
    assert own.outgoing(given, identity) is identity
    owning, _ = access(clock, owns_key=True)
    outgoing = owning.outgoing(given, identity)
    assert (outgoing.credentials, outgoing.vector_affecting) == (OWN_KEY, [("x-route", "eu")])


def test_a_signed_target_makes_a_signed_request(clock: Clock) -> None:
    admitting, _ = access(clock)
    assert not admitting.identity(headers(), "/v1/embeddings").is_signed
    assert admitting.identity(headers(), "/v1/embeddings?X-Amz-Algorithm=AWS4-HMAC-SHA256").is_signed


def test_cached_entries_are_served_to_credentials_that_the_upstream_accepted(clock: Clock) -> None:
    admitting, validations = access(clock)
    identity = admitting.identity(headers(Authorization="Bearer k"), "")
    tenant = admitting.tenant(identity, Admission())
    credential = Credential(validations.credential_id(tenant.name, ORIGIN, identity), SCOPE)
    assert tenant.is_unverified
    assert not admitting.may_serve(credential)
    validations.confirm(credential, asked_at_s=clock.now)
    validations.accept(tenant.name)
    assert admitting.may_serve(credential)
    assert not admitting.tenant(identity, Admission()).is_unverified
    owning, _ = access(clock, owns_key=True)
    assert owning.may_serve(credential)


def test_a_tenant_is_its_api_key_whatever_else_looks_like_a_credential(clock: Clock) -> None:
    admitting, _ = access(clock)

    def name(**fields: str) -> bytes:
        return admitting.tenant(admitting.identity(headers(**fields), ""), Admission()).name

    plain = name(Authorization="Bearer k")
    assert plain == name(Authorization="Bearer k", x_api_key="other", X_Session_Token="made up")
    assert plain != name(Authorization="Bearer l")
    assert name(x_api_key="k", api_key="a") == name(x_api_key="k", api_key="b")
    assert name(X_Session_Token="a") != name(X_Session_Token="b")
    identity = admitting.identity(headers(Authorization="Bearer k"), "")
    of_list = admitting.tenant(identity, Admission(0, "search"))
    assert (of_list.name != plain, of_list.is_unverified) == (True, False)


def test_the_ledger_knows_a_client_by_its_name_or_a_pseudonym(clock: Clock) -> None:
    names = Pseudonyms(b"5" * 32)
    plain, _ = access(clock)
    pseudonymous, _ = access(clock, pseudonyms=names)
    identity = plain.identity(headers(Authorization="Bearer k", x_api_key="other"), "")
    assert plain.client(identity, Admission()) is None
    assert pseudonymous.client(identity, Admission()) == names.of([("authorization", "Bearer k")])
    assert pseudonymous.client(identity, Admission(0, "search")) == "search"


def test_who_shares_entries(clock: Clock) -> None:
    def scope(given: CIMultiDictProxy[str], **changes: Any) -> tuple[object, bool]:
        admitting, _ = access(clock, **changes)
        identity = admitting.outgoing(given, admitting.identity(given, ""))
        return admitting.scope(identity), admitting.is_shared_scope(identity)

    key = headers(Authorization="Bearer k")
    assert scope(key) == ([("authorization", "Bearer k")], False)
    assert scope(key, shares_all=True) == (EVERYBODY, True)
    assert scope(key, owns_key=True) == scope(headers(), owns_key=True) == (OWN_KEY, True)


def test_a_page_is_served_where_the_upstreams_word_on_it_is_known_or_entries_are_shared(clock: Clock) -> None:
    page = headers(Origin="https://page")
    admitting, _ = access(clock)
    sharing, _ = access(clock, shares_all=True)
    upstream = origin_of(FakeClient())
    assert isinstance(upstream.cors, Cors)
    assert admitting.may_read(upstream, headers())
    assert not admitting.may_read(upstream, page)
    assert sharing.may_read(upstream, page)
