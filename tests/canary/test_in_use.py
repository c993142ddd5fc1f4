"""Which models are checked: those that clients ask for, and not too many."""

import pytest

from proxy.canary.in_use import IN_USE_S, MAX_SUBJECTS, SubjectsInUse
from proxy.canary.subject import Subject
from tests.support.canaries import HOUR_S
from tests.support.dict_store import Clock
from tests.support.drifting import URL


def subject(number: int) -> Subject:
    return Subject("up", URL, f"m{number}", f"m{number}")


class Used(SubjectsInUse):
    def __init__(self) -> None:
        self.clock = Clock()
        self.items = 0.0
        super().__init__(lambda _: self.items, clock=self.clock)


def test_a_model_that_nobody_asks_for_is_forgotten() -> None:
    used = Used()
    used.note(subject(0))
    used.clock.now += IN_USE_S - 1
    used.note(subject(1))
    assert used.current() == [subject(0), subject(1)]
    used.clock.now += 2
    assert used.current() == [subject(1)]


def test_requests_that_are_not_parsed_count() -> None:
    used = Used()
    used.note(subject(0))
    for _ in range(3):
        used.current()
        used.clock.now += IN_USE_S - 1
        used.items += 1
    assert used.current() == [subject(0)]
    used.clock.now += IN_USE_S + 1
    assert used.current() == []


def test_there_are_never_too_many(caplog: pytest.LogCaptureFixture) -> None:
    used = Used()
    for number in range(3 * MAX_SUBJECTS):
        used.note(subject(number))
    assert used.current() == [subject(number) for number in range(MAX_SUBJECTS)]
    assert len(caplog.records) == 1
    used.clock.now += 25 * HOUR_S
    for number in range(1, MAX_SUBJECTS):
        used.note(subject(number))
    for number in (100, 101):
        used.note(subject(number))
    assert used.current() == [*(subject(number) for number in range(1, MAX_SUBJECTS)), subject(100)]


def test_long_names_are_not_kept() -> None:
    used = Used()
    used.note(Subject("up", URL, "m" * 2000, None))
    assert used.current() == []
