"""A purge by conditions, as text in the log: what was written is read, and nothing else is taken for a purge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache import purge_conditions
from proxy.cache.store import PurgedModels

PURGED = st.builds(
    PurgedModels,
    st.text(),
    st.none() | st.just(b"") | st.binary(min_size=8, max_size=8),
    st.none() | st.integers(0, 2**40) | st.floats(0.0, 1e12),
)


@given(PURGED)
def test_what_was_encoded_is_decoded(models: PurgedModels) -> None:
    assert purge_conditions.decode(purge_conditions.encode(models)) == models


@given(st.binary())
def test_any_other_bytes_are_no_purge(text: bytes) -> None:
    assert purge_conditions.decode(text) is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'["*", null, null]',
        b'{"model": "*", "scope": "616263", "stored_before_s": null}',
        b'{"model": "*", "scope": "not hexadecimal", "stored_before_s": null}',
        b'{"model": "*", "scope": 1, "stored_before_s": null}',
        b'{"model": "*", "scope": null, "stored_before_s": "1"}',
        b'{"model": null, "scope": null, "stored_before_s": 1}',
        b'{"model": "*", "scope": null, "stored_before_s": 1, "of a later version": 1}',
    ],
)
def test_what_another_version_may_have_written_is_no_purge(text: bytes) -> None:
    assert purge_conditions.decode(text) is None
