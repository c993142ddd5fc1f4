"""Records on their way to the store and back: which are served, and when they count as stored."""

import math
from collections.abc import Mapping

import pytest

from proxy.cache.codec import RecordCodec
from proxy.protocol import records
from proxy.protocol.records import Record, RecordKey
from proxy.telemetry.metrics import Metrics
from tests.support import proxy_log
from tests.support.dict_store import A, B, C, Clock, record

DAY_S = 24 * 3600
NOW_S, TTL_S = Clock.now, 3600.0


class Codec(RecordCodec):
    def __init__(
        self, *, expires: bool = False, ttl_s: float | None = TTL_S, secret: bytes | None = None, now_s: float = NOW_S
    ) -> None:
        """``expires``: the store drops values that are older than ``ttl_s``."""
        self.metrics = Metrics()
        record_key = None if secret is None else RecordKey(secret)
        super().__init__(self.metrics, record_key=record_key, ttl_s=ttl_s, store_expires=expires, clock=lambda: now_s)

    def decoded(self, values: Mapping[bytes, bytes]) -> dict[bytes, Record]:
        """The records of the entries, all of which the store has."""
        entries = self.decode(values)
        assert all(entry.is_confirmed for entry in entries.values())
        return {key: entry.record() for key, entry in entries.items()}

    def dated(self, stored_at_s: float) -> int:
        """As what time a record counts that is stored with this one."""
        stored = record(at=stored_at_s)
        (found,) = self.decoded({A: records.encode(A, stored)}).values()
        assert (found.vector, found.model, found.tokens) == (stored.vector, stored.model, stored.tokens)
        return found.stored_at_s

    def invalid(self, flaw: str) -> float:
        return self.metrics.store_invalid_records.labels(flaw).value


def test_what_is_encoded_is_decoded() -> None:
    codec = Codec()
    fresh = {A: record(1.0), B: record(2.0)}
    assert codec.decoded(codec.encode(fresh)) == fresh


def test_records_are_tagged_with_the_operators_key() -> None:
    own, plain = Codec(secret=b"own"), Codec()
    assert own.decoded(own.encode({A: record()})) == {A: record()}
    assert own.decoded(Codec(secret=b"other").encode({A: record()})) == {}
    assert own.decoded(plain.encode({B: record()})) == {}
    assert (own.invalid("other-key"), own.invalid("untagged")) == (1, 1)


# --- dating

ANY_TIMES = [0, NOW_S - 10 * DAY_S, NOW_S - TTL_S - 1, NOW_S - TTL_S, NOW_S - 1, NOW_S]


@pytest.mark.parametrize("stored_at_s", ANY_TIMES)
def test_without_a_store_that_expires_every_time_in_the_past_is_possible(stored_at_s: float) -> None:
    assert Codec().dated(stored_at_s) == stored_at_s


@pytest.mark.parametrize("expires", [False, True])
@pytest.mark.parametrize("ahead_s", [1, 3600, DAY_S])
def test_no_record_is_from_the_future(ahead_s: int, *, expires: bool) -> None:
    assert Codec(expires=expires).dated(NOW_S + ahead_s) == NOW_S
    assert Codec(expires=expires, now_s=NOW_S + 0.7).dated(NOW_S + ahead_s) == NOW_S


def test_a_record_of_a_clock_that_was_wrong_is_as_old_as_can_be_where_nothing_else_expires_it() -> None:
    assert Codec().dated(NOW_S + DAY_S + 1) == 0
    assert Codec(ttl_s=None, expires=True).dated(NOW_S + DAY_S + 1) == 0
    assert Codec(expires=True).dated(NOW_S + DAY_S + 1) == NOW_S


@pytest.mark.parametrize("late_s", [1, 3600, DAY_S])
def test_a_record_that_an_expiring_store_still_has_is_not_past_its_ttl(late_s: int) -> None:
    oldest_s = NOW_S - TTL_S
    assert Codec(expires=True).dated(oldest_s - late_s) == oldest_s
    assert Codec(expires=True, now_s=NOW_S + 0.5).dated(oldest_s - late_s + 1) == oldest_s + 1  # not below 0.5


@pytest.mark.parametrize("stored_at_s", [NOW_S - TTL_S, NOW_S - TTL_S + 1, NOW_S])
def test_a_time_that_is_possible_stays(stored_at_s: float) -> None:
    assert Codec(expires=True).dated(stored_at_s) == stored_at_s


def test_a_record_that_was_stored_under_a_longer_ttl_keeps_its_age() -> None:
    stored_at_s = NOW_S - TTL_S - DAY_S - 1
    assert Codec(expires=True).dated(stored_at_s) == stored_at_s
    assert Codec(expires=True, ttl_s=None).dated(0) == 0


def test_a_fraction_of_a_second_is_no_other_time() -> None:
    codec = Codec(expires=True, now_s=NOW_S + 0.9)
    assert codec.dated(NOW_S) == NOW_S
    assert codec.dated(NOW_S + 0.9 - TTL_S) == math.ceil(NOW_S + 0.9 - TTL_S)


# --- invalid records


def test_an_invalid_record_is_left_out_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    codec = Codec()
    good = records.encode(B, record())
    for _ in range(2):
        assert codec.decoded({A: b"damaged", B: good, C: good}) == {B: record()}
    assert (codec.invalid("checksum"), codec.invalid("key")) == (1, 1)
    damaged, copied = proxy_log.messages(caplog)
    assert damaged == (
        "the store has invalid records (checksum): they are damaged, or not records of this version; they are misses"
        " and are replaced (said once; counted in metrics)"
    )
    assert copied.startswith("the store has invalid records (key): they were stored under another key and copied")


def test_it_is_counted_again_once_it_was_replaced() -> None:
    codec = Codec()
    codec.decode({A: b"damaged"})
    codec.replaced([A])
    codec.decode({A: b"damaged"})
    assert codec.invalid("checksum") == 2
    codec.decode({A: records.encode(A, record())})  # by another proxy
    codec.decode({A: b"damaged"})
    assert codec.invalid("checksum") == 3
