"""The hits of a memory tier and a store, counted by hand."""

import numpy as np
import pytest

from proxy.analysis.recording import Recording, RequestKind, Requests
from proxy.analysis.simulation import Lookups, memory_needed, run_memory, run_store, store_needed
from proxy.analysis.statistics import occurrences
from proxy.analysis.store_model import entry_bytes
from proxy.config.settings import MIB

PACKED = RequestKind("m", 16, reads_numbers=False, shortest=True, is_keyed_whole=False)
NUMBERS = PACKED._replace(reads_numbers=True)
WHOLE = PACKED._replace(is_keyed_whole=True)
PLENTY = 64 * MIB


def recorded(*sent: tuple[RequestKind, list[int]], times_s: list[float] | None = None) -> Requests:
    """Requests of these items, each of which costs its number of tokens."""
    recording = Recording()
    for position, (kind, items) in enumerate(sent):
        keys = [item.to_bytes(16) for item in items]
        fresh = recording.add(kind, keys, None if times_s is None else times_s[position])
        recording.set_tokens([items[new] for new in fresh])
    return recording.finished()


def lookups_of(requests: Requests) -> Lookups:
    return Lookups(requests, occurrences(requests))


def found(requests: Requests, memory_bytes: int = PLENTY) -> list[bool]:
    return [bool(one) for one in run_memory(lookups_of(requests), memory_bytes)]


def test_what_was_requested_before_is_in_memory_unless_that_is_too_small() -> None:
    requests = recorded((PACKED, [1, 2]), (PACKED, [2, 3]), (PACKED, [1, 2, 3]))
    assert found(requests) == [False, False, True, False, True, True, True]
    assert found(requests, memory_bytes=0) == [False] * 7


def test_a_repeated_item_of_a_request_is_looked_up_once() -> None:
    lookups = lookups_of(recorded((PACKED, [1, 1, 2]), (PACKED, [1, 1])))
    assert (lookups.ids.tolist(), lookups.duplicates) == ([0, 1, 0], 2)
    assert list(lookups.each()) == [(0, 0, [0, 1]), (2, 1, [0])]
    assert list(lookups.each(np.array([False, True, True]))) == [(0, 0, [1]), (1, 1, [0])]
    assert list(lookups.each(lookups.nowhere())) == []


def test_requests_that_are_keyed_as_a_whole_hit_as_a_whole() -> None:
    requests = recorded((WHOLE, [1, 2]), (WHOLE, [1, 3]), (WHOLE, [1, 2]))
    assert found(requests) == [False, False, False, False, True, True]
    lookups = lookups_of(requests)
    in_store = run_store(lookups, lookups.nowhere(), PLENTY, rate=1.0)
    assert in_store.tolist() == [False, False, False, False, True, True]


def test_the_text_of_numbers_takes_memory_once_somebody_reads_them() -> None:
    few = recorded((PACKED, [1]))
    many = recorded((PACKED, [1]), (NUMBERS, [1]))
    widened = recorded((NUMBERS._replace(shortest=False), [1]))
    assert memory_needed(few) < memory_needed(many) < memory_needed(widened)
    assert memory_needed(many) - memory_needed(few) == pytest.approx(16 * 12.5, abs=16)
    assert memory_needed(widened) - memory_needed(few) == pytest.approx(16 * 21, abs=16)


def test_a_text_that_is_made_later_takes_the_place_of_others() -> None:
    packed, numbers = (kind._replace(dimensions=1024) for kind in (PACKED, NUMBERS))
    items = list(range(1, 301))
    room = memory_needed(recorded((packed, items)))
    assert found(recorded((packed, items), (packed, items)), room)[-300:] == [True] * 300
    read_later = recorded((packed, items), (numbers, items), (packed, items))
    assert not all(found(read_later, room)[-300:])
    assert found(read_later)[-300:] == [True] * 300


def test_sizes_at_which_nothing_is_evicted() -> None:
    requests = recorded(*[(PACKED, [item]) for item in range(1, 50)], *[(PACKED, [item]) for item in range(1, 50)])
    assert found(requests, memory_needed(requests)) == [False] * 49 + [True] * 49
    lookups = lookups_of(requests)
    assert store_needed(requests) == int(int(49 * entry_bytes(16)) * 1.02) + MIB
    assert (
        run_store(lookups, lookups.nowhere(), store_needed(requests), rate=1.0).tolist() == [False] * 49 + [True] * 49
    )


def test_the_store_has_what_memory_lacks_and_is_asked_for_nothing_else() -> None:
    lookups = lookups_of(recorded((PACKED, [1, 2]), (PACKED, [1, 2]), (PACKED, [1, 2, 3])))
    in_memory = np.array([False, False, True, False, False, True, False])
    in_store = run_store(lookups, in_memory, PLENTY, rate=1.0)
    assert in_store.tolist() == [False, False, False, True, True, False, False]


def test_outcomes_are_counted() -> None:
    requests = recorded((PACKED, [1, 2, 2]), (NUMBERS, [2, 3]), (PACKED, [1]))
    lookups = lookups_of(requests)
    in_memory = np.array([False, False, True, False, False])
    in_store = np.array([False, False, False, False, True])
    outcome = lookups.outcome(in_memory, in_store)
    assert (outcome.memory, outcome.store, outcome.duplicate, outcome.upstream) == (1, 1, 1, 3)
    assert (outcome.upstream_calls, outcome.upstream_tokens) == (2, [1 + 2, 3])
    assert outcome.hit_rate == 3 / 6
    assert lookups_of(recorded()).outcome(*[np.zeros(0, bool)] * 2).hit_rate == 0


@pytest.mark.parametrize("has_times", [True, False])
def test_the_store_evicts_what_was_read_longest_ago(*, has_times: bool) -> None:
    """Item 1 is read again and again, the others once; a store for a few keeps item 1."""
    sent = [(PACKED._replace(dimensions=4096), [item]) for other in range(2, 60) for item in (1, other)]
    times_s = [100.0 * position for position in range(len(sent))] if has_times else None
    requests = recorded(*sent, times_s=times_s)
    lookups = lookups_of(requests)
    in_store = run_store(lookups, lookups.nowhere(), MIB, rate=0.01).tolist()
    assert in_store == [position > 0 and position % 2 == 0 for position in range(len(sent))]
    faster = run_store(lookups, lookups.nowhere(), MIB, rate=1e9).tolist()  # than a read counts as later
    assert (faster == in_store) is has_times
