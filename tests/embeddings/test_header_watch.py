"""When a header field is said to cost hits."""

import pytest

from proxy.embeddings.header_watch import _MAX_GROUPS, MANY_VALUES, HeaderWatch
from proxy.protocol.identities import Identity


def identity(*vector_affecting: tuple[str, str], key: str = "k", more: tuple[tuple[str, str], ...] = ()) -> Identity:
    return Identity([("authorization", key), *more], list(vector_affecting), is_signed=False)


def misses(watch: HeaderWatch, count: int, *, start: int = 0, model: str = "m", key: str = "k") -> list[str]:
    said = []
    for number in range(start, start + count):
        said += watch.missed(identity(("x-tags", str(number)), key=key), model)
    return said


def test_many_values_without_a_hit_are_reported_at_the_last_of_them() -> None:
    watch = HeaderWatch()
    assert misses(watch, MANY_VALUES - 1) == []
    assert misses(watch, 1, start=MANY_VALUES) == ["x-tags"]


def test_it_goes_on_counting_from_nothing() -> None:
    watch = HeaderWatch()
    assert misses(watch, 3 * MANY_VALUES) == ["x-tags"] * 3


def test_the_same_value_counts_once() -> None:
    watch = HeaderWatch()
    for _ in range(3 * MANY_VALUES):
        assert watch.missed(identity(("x-tags", "same")), "m") == []


def test_after_a_hit_it_begins_again_whatever_the_value_was() -> None:
    watch = HeaderWatch()
    misses(watch, MANY_VALUES - 1)
    watch.hit(identity(("x-tags", "another")), "m")
    assert misses(watch, MANY_VALUES - 1, start=100) == []
    assert misses(watch, 1, start=200) == ["x-tags"]


@pytest.mark.parametrize(("key", "model"), [("other", "m"), ("k", "other")])
def test_a_hit_of_another_credential_or_model_does_not_matter(key: str, model: str) -> None:
    watch = HeaderWatch()
    misses(watch, MANY_VALUES - 1)
    watch.hit(identity(("x-tags", "v"), key=key), model)
    assert misses(watch, 1, start=100) == ["x-tags"]


def test_credentials_and_models_are_counted_separately() -> None:
    watch = HeaderWatch()
    for number in range(MANY_VALUES):
        assert misses(watch, 1, start=number, key=f"k{number}") == []
        assert misses(watch, 1, start=number, model=f"m{number}") == []


def test_fields_that_name_a_client_are_watched_but_not_its_secrets() -> None:
    watch = HeaderWatch()
    said = []
    for number in range(MANY_VALUES):
        said += watch.missed(identity(key="k", more=(("x-session-token", str(number)),)), None)
        said += watch.missed(identity(key=str(number)), None)
        said += watch.missed(Identity([("cookie", str(number))], [], is_signed=False), None)
        said += watch.missed(Identity([("", "own key")], [], is_signed=False), None)
    assert said == ["x-session-token"]


def test_a_field_that_stays_is_not_named_beside_one_that_does_not() -> None:
    watch = HeaderWatch()
    said = []
    for number in range(MANY_VALUES):
        said += watch.missed(identity(("x-plan", "gold"), ("x-tags", str(number)), ("x-tags", "same")), "m")
    assert said == ["x-tags"]


def test_an_absurd_name_is_not_watched() -> None:
    watch = HeaderWatch()
    for number in range(2 * MANY_VALUES):
        assert watch.missed(identity(("x-tags" * 100, str(number))), "m") == []


def test_memory_is_bounded() -> None:
    watch = HeaderWatch()
    for number in range(10 * _MAX_GROUPS):
        misses(watch, 2, key=f"k{number}")
    assert len(watch._values) == _MAX_GROUPS
    assert misses(watch, MANY_VALUES, key="new") == ["x-tags"]  # the oldest went
