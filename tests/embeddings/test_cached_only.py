"""What a client that accepts only cached responses is told, by whether its credential is known to be valid."""

import pytest

from proxy.embeddings.cached_only import all_cached, not_cached

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
UNKNOWN_KEY = "The upstream has not accepted this API key recently, so cached items are not served."


def test_a_valid_credential_gets_the_positions_of_every_missing_item() -> None:
    error = not_cached([A, B, A, C], [A, C], is_valid=True, is_shared=True)
    assert (error.items, error.missing) == (4, [0, 2, 3])
    assert error.message == "3 of 4 items are not cached."


def test_another_credential_is_told_only_how_many_of_its_own_items_are_missing() -> None:
    error = not_cached([A, B], [B], is_valid=False, is_shared=False)
    assert (error.items, error.missing) == (0, None)
    assert error.message == "1 of 2 items are not cached."


@pytest.mark.parametrize(("missing", "is_shared"), [([], False), ([], True), ([B], True)])
def test_what_other_clients_have_cached_is_not_revealed(missing: list[bytes], is_shared: bool) -> None:
    error = not_cached([A, B], missing, is_valid=False, is_shared=is_shared)
    assert (error.message, error.items, error.missing) == (UNKNOWN_KEY, 0, None)


def test_a_response_without_items_is_a_hit_that_saved_nothing() -> None:
    response = all_cached()
    assert (response.status, response.body) == (204, None)
    assert response.headers["Preference-Applied"] == "return=minimal"
    assert response.headers["X-Cache"] == "HIT"
    assert response.headers["Cache-Status"] == "embedding-proxy; hit"
    assert response.headers["X-Cache-Saved-Tokens"] == "0"
