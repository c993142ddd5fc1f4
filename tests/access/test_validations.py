"""Which credentials count as accepted, whatever the order of the upstream's responses, and for how long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.validations import Credential, CredentialId, CredentialScope, Validations
from proxy.protocol.identities import Identity
from tests.support.client_requests import URL
from tests.support.fake_client import FakeClient, origin_of

TTL_S = 600.0
ANN, BOB = CredentialId(b"ann", b"ann's"), CredentialId(b"bob", b"bob's")
SMALL, LARGE = (Credential(ANN, CredentialScope(URL, model)) for model in ("small", "large"))
BOBS = Credential(BOB, SMALL.scope)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def validations(clock: Clock) -> Validations:
    return Validations(ttl_s=TTL_S, clock=clock)


def confirm(validations: Validations, *credentials: Credential) -> None:
    for credential in credentials:
        validations.confirm(credential, asked_at_s=validations.now())


def test_an_acceptance_counts_for_its_credential_and_scope_until_its_time_has_passed(
    validations: Validations, clock: Clock
) -> None:
    assert not validations.is_confirmed(SMALL)
    confirm(validations, SMALL)
    assert validations.is_confirmed(SMALL)
    assert not validations.is_confirmed(LARGE)
    assert not validations.is_confirmed(BOBS)
    clock.now_s += TTL_S - 1
    assert validations.is_confirmed(SMALL)
    clock.now_s += 1
    assert not validations.is_confirmed(SMALL)
    assert not validations.is_refused(SMALL)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_credential_is_refused_all_scopes(validations: Validations, status: int) -> None:
    confirm(validations, SMALL, LARGE)
    validations.note(SMALL, status)
    assert [validations.is_confirmed(each) for each in (SMALL, LARGE)] == [False, False]
    assert [validations.is_refused(each) for each in (SMALL, LARGE)] == [True, True]
    assert not validations.is_refused(BOBS)


def test_a_refused_scope_says_nothing_of_another(validations: Validations) -> None:
    confirm(validations, SMALL, LARGE)
    validations.note(SMALL, 404)
    assert [validations.is_confirmed(each) for each in (SMALL, LARGE)] == [False, True]
    assert [validations.is_refused(each) for each in (SMALL, LARGE)] == [True, False]


@pytest.mark.parametrize("status", [400, 402, 408, 429, 500, 503])
def test_no_other_status_is_a_verdict(validations: Validations, status: int) -> None:
    confirm(validations, SMALL)
    validations.note(SMALL, status)
    assert validations.is_confirmed(SMALL)
    assert not validations.is_refused(SMALL)


def test_an_acceptance_of_one_scope_does_not_end_the_refusal_of_another(validations: Validations) -> None:
    confirm(validations, SMALL, LARGE)
    validations.note(SMALL, 403)
    confirm(validations, LARGE)
    assert [validations.is_refused(each) for each in (SMALL, LARGE)] == [True, False]
    assert [validations.is_confirmed(each) for each in (SMALL, LARGE)] == [False, True]


def test_a_response_to_an_earlier_call_does_not_undo_a_refusal(validations: Validations, clock: Clock) -> None:
    asked_at_s = clock.now_s
    clock.now_s += 1
    validations.note(SMALL, 401)
    validations.confirm(SMALL, asked_at_s=asked_at_s)
    assert validations.is_refused(SMALL)
    validations.confirm(SMALL, asked_at_s=clock.now_s)
    assert validations.is_confirmed(SMALL)
    assert not validations.is_refused(SMALL)


def test_an_acceptance_counts_from_when_the_upstream_was_asked(validations: Validations, clock: Clock) -> None:
    asked_at_s = clock.now_s
    clock.now_s += TTL_S - 1
    validations.confirm(SMALL, asked_at_s=asked_at_s)
    assert validations.is_confirmed(SMALL)
    clock.now_s += 1
    assert not validations.is_confirmed(SMALL)


def test_a_scope_that_is_too_long_to_be_kept_is_never_confirmed(validations: Validations) -> None:
    long = Credential(ANN, CredentialScope(URL, "m" * 4096))
    confirm(validations, long)
    assert not validations.is_confirmed(long)
    validations.note(long, 404)
    assert not validations.is_refused(long)
    validations.note(long, 401)
    assert validations.is_refused(long)


def test_a_tenant_is_known_from_its_first_accepted_request(validations: Validations) -> None:
    assert not validations.has_accepted(b"ann")
    validations.accept(b"ann")
    assert validations.has_accepted(b"ann")
    assert not validations.has_accepted(b"bob")
    validations.confirm(BOBS, asked_at_s=0.0)
    assert validations.has_accepted(b"bob")


def test_credentials_are_kept_as_macs_that_differ_between_processes(clock: Clock) -> None:
    identity = Identity([("authorization", "Bearer sk-secret")], [("x-model", "m")], is_signed=False)
    one, two = (Validations(ttl_s=TTL_S, clock=clock) for _ in range(2))
    origin, other = origin_of(FakeClient()), origin_of(FakeClient(), "two")
    known = one.credential_id(one.tenant(identity.credentials), origin, identity)
    assert known == one.credential_id(one.tenant(identity.credentials), origin, identity)
    assert known != two.credential_id(two.tenant(identity.credentials), origin, identity)
    assert known != one.credential_id(known.tenant, other, identity)
    assert known != one.credential_id(known.tenant, origin, identity._replace(vector_affecting=[("x-model", "n")]))
    assert known != one.credential_id(known.tenant, origin, identity._replace(credentials=[]))
    assert b"sk-secret" not in known.credentials_mac + known.tenant


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "accept", "refuse all", "refuse one", "wait"]),
        st.sampled_from([SMALL, LARGE]),
    ),
    max_size=30,
)


@given(EVENTS)
def test_what_was_refused_last_is_never_confirmed(events: list[tuple[str, Credential]]) -> None:
    """A response counts from when its call was sent; one call of each scope is under way at a time."""
    clock = Clock()
    validations = Validations(ttl_s=TTL_S, clock=clock)
    asked_at_s = dict.fromkeys((SMALL, LARGE), clock.now_s)
    refused_at_s: dict[Credential, float] = {}
    for event, credential in events:
        clock.now_s += 1
        if event == "ask":
            asked_at_s[credential] = clock.now_s
        elif event == "accept":
            validations.confirm(credential, asked_at_s=asked_at_s[credential])
            if asked_at_s[credential] >= refused_at_s.get(credential, 0.0):
                refused_at_s.pop(credential, None)
        elif event == "wait":
            clock.now_s += TTL_S
        else:
            validations.note(credential, 401 if event == "refuse all" else 404)
            refused_at_s[credential] = clock.now_s
        for each in (SMALL, LARGE):
            if each in refused_at_s:
                assert validations.is_refused(each)
            assert not (validations.is_confirmed(each) and validations.is_refused(each))
