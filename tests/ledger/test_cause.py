"""Why a request can't be a hit, as an operator reads it: every reason has a remedy, and no client's text is shown."""

import pytest

from proxy.labels import BypassReason
from proxy.ledger import cause as causes
from proxy.ledger.cause import EXPIRING_TOKEN, VARYING_HEADER, WRONG_PATH, Cause, Why, agent_of


@pytest.mark.parametrize("reason", [*BypassReason, VARYING_HEADER, EXPIRING_TOKEN, WRONG_PATH])
def test_every_reason_has_a_remedy_of_its_own(reason: str) -> None:
    remedy = Cause(reason, "my_field").remedy("openai")
    assert remedy != Cause("no such reason").remedy("openai") == "see docs/clients.md for this reason"
    assert "{" not in remedy.replace('["', "")
    assert ("my_field" in remedy) is ("{field}" in causes._REMEDIES[reason])
    assert ("openai" in remedy) is ("{provider}" in causes._REMEDIES[reason])


def test_a_remedy_without_a_field_says_so() -> None:
    assert Cause(BypassReason.STREAM).remedy("p") == "let the client leave out the field"


def test_a_field_that_may_be_a_clients_text_is_left_out() -> None:
    assert Cause.of("r", "a_b.c-9").field == "a_b.c-9"
    for text in ("two words", "9a", "x" * 65, "a\n", ""):
        assert Cause.of("r", text) == Cause("r")


def test_a_cause_is_its_reason_and_the_field_unless_they_are_one() -> None:
    assert str(Cause("unknown-field", "tag")) == "unknown-field tag"
    assert str(Cause("stream", "stream")) == str(Cause("stream")) == "stream"


def test_the_log_line_has_only_what_is_known() -> None:
    assert Why(Cause("r", "f"), "p").fields() == {"reason": "r", "field": "f", "user_agent": "p"}
    assert Why(Cause("r"), "").fields() == {"reason": "r"}
    assert Why(None, "").fields() == {}


@pytest.mark.parametrize(
    ("user_agent", "shown"),
    [
        (None, ""), ("", ""), ("OpenAI/Python 1.2", "OpenAI/Python"), ("curl", "curl"), ("a/b/c", "a/b"),
        ("x" * 41, "x" * 40), ("a/" + "y" * 30, "a/" + "y" * 24), ("(comment)", ""), ("ключ", ""), ("a b", "a"),
    ],
)  # fmt: skip
def test_a_program_is_the_first_product_of_its_user_agent(user_agent: str | None, shown: str) -> None:
    assert agent_of(user_agent) == shown
