"""What was discarded since a moment, so that no read from before it brings an outdated record back."""

import gc
import weakref

from proxy.cache.discards import EVERYTHING, Discards
from proxy.cache.store import Purge, PurgedModels
from tests.support.dict_store import record

A, B = b"a" * 32, b"b" * 32
ALL_OF_M = Purge(set(), {PurgedModels("m*")})


def test_a_moment_has_the_keys_that_were_discarded_after_it() -> None:
    discards = Discards(again_after_s=10.0)
    before = discards.now
    discards.add({A}, 0.0)
    between = discards.now
    discards.add({B}, 0.0)
    assert (A in before, B in before) == (True, True)
    assert (A in between, B in between) == (False, True)
    assert A not in discards.now
    assert B not in discards.now


def test_everything_may_be_discarded() -> None:
    discards = Discards(again_after_s=10.0)
    before = discards.now
    discards.add(EVERYTHING, 0.0)
    assert A in before
    assert discards.take_due(100.0) == []  # nothing can be discarded more than once by that


def test_keys_are_discarded_once_more_when_their_time_has_come_in_their_order() -> None:
    discards = Discards(again_after_s=10.0)
    discards.add({A}, 0.0)
    discards.add({B}, 5.0)
    assert discards.take_due(9.9) == []
    before = discards.now
    assert discards.take_due(10.0) == [{A}]
    assert (A in before, B in before) == (True, False)
    assert discards.take_due(100.0) == [{B}]
    assert discards.take_due(100.0) == []


def test_a_purge_covers_what_was_asked_for_before_it() -> None:
    discards = Discards(again_after_s=10.0)
    before = discards.now
    discards.add({A}, 0.0)
    discards.add(EVERYTHING, 0.0, ALL_OF_M)
    assert before.is_purged(A, record(model="model"))
    assert not before.is_purged(A, record(model="another"))
    assert not discards.now.is_purged(A, record(model="model"))
    discards.add({B}, 0.0, Purge({B}, set()))
    assert before.is_purged(B, record(model="another"))
    assert not before.is_purged(A, record(model="another"))


def test_a_discard_without_purge_purges_nothing() -> None:
    discards = Discards(again_after_s=10.0)
    before = discards.now
    discards.add({A}, 0.0)
    assert not before.is_purged(A, record())


def test_a_mark_ends_with_the_read_that_holds_it() -> None:
    """Later marks do not keep earlier ones: their number would grow for ever."""

    class Keys(set[bytes]):
        """As a set, and may be referred to weakly."""

    discards = Discards(again_after_s=0.0)
    keys = Keys({A})
    seen = weakref.ref(keys)
    discards.add(keys, 0.0)
    discards.take_due(0.0)
    del keys
    gc.collect()
    assert seen() is None
