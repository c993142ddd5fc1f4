"""``Cache-Control``, ``Priority`` and ``Prefer``, as clients send them."""

import pytest
from multidict import CIMultiDict

from proxy.protocol.directives import (
    NO_DIRECTIVES,
    Directives,
    cache_control,
    prefers_minimal,
    urgency_of,
    wait_s_of,
)


@pytest.mark.parametrize(
    ("value", "directives"),
    [
        ("no-cache", Directives(no_cache=True)),
        ("No-Store", Directives(no_store=True)),
        ("only-if-cached, max-age=60", Directives(only_if_cached=True, max_age_s=60)),
        ('max-age="0"', Directives(max_age_s=0)),
        ("max-age", NO_DIRECTIVES),
        ("max-age=-1", NO_DIRECTIVES),
        ("max-age=soon, immutable, , ;", NO_DIRECTIVES),
        ("", NO_DIRECTIVES),
    ],
)
def test_directives_are_read_from_cache_control(value: str, directives: Directives) -> None:
    assert cache_control(CIMultiDict({"Cache-Control": value})) == directives


def test_a_request_without_cache_control_has_no_directives() -> None:
    assert cache_control(CIMultiDict()) == NO_DIRECTIVES


def test_cache_control_in_several_fields_is_one_list() -> None:
    given = CIMultiDict([("Cache-Control", "no-store"), ("Cache-Control", "no-cache")])
    assert cache_control(given) == Directives(no_cache=True, no_store=True)


def test_an_absurd_max_age_is_ignored() -> None:
    assert cache_control(CIMultiDict({"Cache-Control": "max-age=" + "9" * 5000})) == NO_DIRECTIVES


@pytest.mark.parametrize(
    ("value", "urgency"),
    [("u=0", 0), ("u=7, i", 7), ("i, u=2", 2), (" u = 1 ", 1), ("u=8", 3), ("i", 3), ("", 3), ("u=high", 3)],
)
def test_priority_orders_requests(value: str, urgency: int) -> None:
    assert urgency_of(CIMultiDict({"Priority": value}), items=1, interactive_items=4) == urgency


def test_few_items_are_a_query() -> None:
    headers: CIMultiDict[str] = CIMultiDict()
    assert urgency_of(headers, items=4, interactive_items=4) < urgency_of(headers, items=5, interactive_items=4)


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [("wait=10", 10.0), ("respond-async, wait=5", 5.0), ('WAIT="3"', 3.0), ("wait=soon", None), ("waits=1", None)],
)
def test_a_wait_is_read_from_prefer(value: str, wait_s: float | None) -> None:
    assert wait_s_of(CIMultiDict({"Prefer": value})) == wait_s


def test_a_request_without_prefer_states_no_wait() -> None:
    assert wait_s_of(CIMultiDict()) is None


@pytest.mark.parametrize(
    ("value", "is_minimal"),
    [("return=minimal", True), ('wait=3, Return = "minimal"; x', True), ("return=representation", False), ("", False)],
)
def test_a_minimal_response_is_read_from_prefer(value: str, *, is_minimal: bool) -> None:
    assert prefers_minimal(CIMultiDict([("Prefer", "a=b"), ("Prefer", value)])) is is_minimal
