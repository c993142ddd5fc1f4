"""Short names for credentials: the same in every process with the secret, and nothing without it."""

import re

from proxy.access.pseudonyms import Pseudonyms

SECRET = b"5" * 32
KEY = [("authorization", "Bearer sk-1")]


def test_a_credential_has_one_name_in_every_process() -> None:
    """Dashboards and budgets refer to it, so that no version may change it."""
    assert Pseudonyms(SECRET).of(KEY) == Pseudonyms(SECRET).of(list(KEY)) == "c-879f09421e"


def test_other_credentials_fields_and_secrets_have_other_names() -> None:
    names = {
        Pseudonyms(SECRET).of(KEY),
        Pseudonyms(b"6" * 32).of(KEY),
        Pseudonyms(SECRET).of([("authorization", "Bearer sk-2")]),
        Pseudonyms(SECRET).of([("x-api-key", "Bearer sk-1")]),
        Pseudonyms(SECRET).of([*KEY, *KEY]),
    }
    assert len(names) == 5
    assert all(re.fullmatch("c-[0-9a-f]{10}", name) for name in names)


def test_a_client_without_credential_is_anonymous() -> None:
    assert Pseudonyms(SECRET).of([]) == "anonymous"
