"""Stored values that can't be served: counted once each, and explained once for each kind."""

import pytest

from proxy.cache.invalid import InvalidRecords
from proxy.protocol.records import Flaw
from proxy.telemetry.metrics import Metrics
from tests.support.dict_store import A, B, key_of
from tests.support.samples import samples


def counted(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return samples(metrics, "store_invalid_records_total")


def test_a_record_counts_once_however_often_it_is_read() -> None:
    metrics = Metrics()
    invalid = InvalidRecords(metrics)
    for _ in range(3):
        invalid.found(A, Flaw.TAG)
        invalid.found(B, Flaw.UNTAGGED)
    assert counted(metrics) == {(Flaw.TAG.value,): 1, (Flaw.UNTAGGED.value,): 1}


def test_a_record_that_was_replaced_counts_again() -> None:
    metrics = Metrics()
    invalid = InvalidRecords(metrics)
    invalid.replaced([A])
    invalid.found(A, Flaw.TAG)
    invalid.found(B, Flaw.TAG)
    invalid.replaced([A, key_of(7)])
    invalid.found(A, Flaw.TAG)
    invalid.found(B, Flaw.TAG)
    assert counted(metrics) == {(Flaw.TAG.value,): 3}


def test_the_keys_that_are_known_are_bounded_and_the_oldest_counts_again() -> None:
    metrics = Metrics()
    invalid = InvalidRecords(metrics)
    for number in range(10_001):
        invalid.found(key_of(number), Flaw.TAG)
    invalid.found(key_of(1), Flaw.TAG)
    assert counted(metrics) == {(Flaw.TAG.value,): 10_001}
    invalid.found(key_of(0), Flaw.TAG)
    assert counted(metrics) == {(Flaw.TAG.value,): 10_002}


def test_each_kind_is_explained_once(caplog: pytest.LogCaptureFixture) -> None:
    invalid = InvalidRecords(Metrics())
    for number, flaw in enumerate([*Flaw, *Flaw]):
        invalid.found(key_of(number), flaw)
    assert len(caplog.messages) == len(Flaw)
    said = dict(zip(Flaw, caplog.messages, strict=True))
    assert f"invalid records ({Flaw.OTHER_KEY.value}): they are tagged under another record key" in said[Flaw.OTHER_KEY]
    assert "they name this proxy's record key, but were not tagged with it" in said[Flaw.TAG]
    assert "they have no tag" in said[Flaw.UNTAGGED]
    assert "they were stored under another key and copied" in said[Flaw.KEY]
    others = set(Flaw) - {Flaw.OTHER_KEY, Flaw.TAG, Flaw.UNTAGGED, Flaw.KEY}
    assert others
    assert all("they are damaged, or not records of this version" in said[flaw] for flaw in others)
