"""Warnings of the cached route: each reason once, a bounded number of them, and no client's text."""

import pytest

from proxy.embeddings.log_once import LogOnce, reason_of
from proxy.labels import BypassReason
from proxy.protocol.bypass import Bypass


def test_a_reason_is_logged_once_for_each_effect(caplog: pytest.LogCaptureFixture) -> None:
    once = LogOnce()
    for reason, effect in [("r", "e"), ("r", "e"), ("r", "f"), ("s", "e"), ("s", "e")]:
        once.warn(reason, effect)
    assert caplog.messages == [f"{pair} (logged once; counted in metrics)" for pair in ("e: r", "f: r", "e: s")]


def test_what_clients_choose_can_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    once = LogOnce()
    for number in range(300):
        once.warn(f"reason {number}", "effect")
    assert len(caplog.messages) == 256
    once.warn("reason 0", "effect")
    once.warn("another", "effect")
    assert len(caplog.messages) == 256


@pytest.mark.parametrize(
    ("field", "logged"),
    [
        ("", "unknown-field"),
        ("my_tag", "unknown-field 'my_tag'"),
        ("_a.b-c9", "unknown-field '_a.b-c9'"),
        ("x" * 64, f"unknown-field '{'x' * 64}'"),
        ("x" * 65, "unknown-field"),
        ("9a", "unknown-field"),
        ("a secret", "unknown-field"),
        ("line\n", "unknown-field"),
        ("ключ", "unknown-field"),
    ],
)
def test_only_a_plain_name_of_a_field_is_shown(field: str, logged: str) -> None:
    assert reason_of(Bypass(BypassReason.UNKNOWN_FIELD, field)) == logged
