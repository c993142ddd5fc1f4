"""Which streaks without a hit have a cause that can be named."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.labels import BypassReason
from proxy.ledger.cause import EXPIRING_TOKEN, VARYING_HEADER, WRONG_PATH, Cause, agent_of
from proxy.ledger.hitless import MANY_REQUESTS, MANY_TOKENS, Hitless

FIELD = Cause("unknown-field", "my_tag")
HEADER = Cause(VARYING_HEADER, "x-job-tags")


def test_the_cause_of_half_of_a_hundred_requests_is_named_at_the_hundredth() -> None:
    hitless = Hitless()
    told = [hitless.missed("a", FIELD if number % 2 else None) for number in range(MANY_REQUESTS)]
    assert told == [None] * (MANY_REQUESTS - 1) + [FIELD]


def test_new_texts_are_no_cause() -> None:
    hitless = Hitless()
    assert not any(hitless.missed("a", None) for _ in range(5 * MANY_REQUESTS))


def test_one_hit_starts_anew() -> None:
    hitless = Hitless()
    for number in range(3 * MANY_REQUESTS):
        if number % (MANY_REQUESTS - 1) == 0:
            hitless.hit("a")
        assert hitless.missed("a", FIELD) is None


def test_clients_are_apart() -> None:
    hitless = Hitless()
    for _ in range(MANY_REQUESTS - 1):
        assert hitless.missed("a", FIELD) is None
        assert hitless.missed("b", None) is None
    assert hitless.missed("b", FIELD) is None
    assert hitless.missed("a", None) == FIELD


def test_a_cause_that_shows_after_several_requests_counts_for_them() -> None:
    hitless = Hitless()
    told = []
    for number in range(MANY_REQUESTS):
        if number % 20 == 19:
            hitless.missed("a", HEADER, requests=0, weight=20)
        told.append(hitless.missed("a", None))
    assert told[-1] == HEADER


def test_many_tokens_of_one_program() -> None:
    hitless = Hitless()
    told = [hitless.missed_with_token("p", number * MANY_TOKENS // MANY_REQUESTS) for number in range(MANY_REQUESTS)]
    assert told[-1] == Cause(EXPIRING_TOKEN)
    assert not any(hitless.missed_with_token("q", number % (MANY_TOKENS - 1)) for number in range(300))


@given(st.lists(st.tuples(st.integers(0, 5000), st.text(max_size=3)), max_size=50))
def test_any_number_of_clients_and_fields_is_bounded(requests: list[tuple[int, str]]) -> None:
    hitless = Hitless()
    for client, field in requests:
        for number in range(40):
            hitless.missed((client, number), Cause("unknown-field", f"{field}{number}"))
            hitless.missed("one", Cause("unknown-field", f"{field}{number}"))
    assert len(hitless.streaks) <= 1024
    assert all(len(streak.causes) <= 16 for streak in hitless.streaks.values())


def test_a_field_is_shown_only_if_it_is_a_name() -> None:
    assert Cause.of("unknown-field", "my_tag") == ("unknown-field", "my_tag")
    for text in ("a secret text", "x" * 65, "", "\x1b[2J"):
        assert Cause.of("unknown-field", text).field == ""


def test_a_program_is_the_first_product() -> None:
    assert agent_of("OpenAI/Python 1.2.3") == "OpenAI/Python"
    assert agent_of("python-httpx/0.28.1 (secret)") == "python-httpx/0.28.1"
    assert agent_of("(secret)") == agent_of(None) == agent_of("\x1b[2J") == ""
    assert len(agent_of("x" * 1000)) <= 65


def test_every_cause_has_a_remedy() -> None:
    for reason in (*BypassReason, VARYING_HEADER, EXPIRING_TOKEN, WRONG_PATH):
        assert Cause(reason, "f").remedy("openai")
        assert "{" not in Cause(reason, "").remedy("openai")
    assert 'neutral = ["my_tag"]' in FIELD.remedy("openai")
    assert "--neutral-headers x-job-tags" in HEADER.remedy("openai")
