"""What repeats, against a count in plain Python; and tokens."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.analysis import statistics
from proxy.analysis.recording import Recording, RequestKind, Requests
from proxy.analysis.token_counter import TokenCounter, local_vocabulary
from proxy.protocol.items import ItemKind

KIND = RequestKind("m", 16, reads_numbers=False, shortest=True, is_keyed_whole=False)
SEQUENCES = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), max_size=20)


def recorded(sequence: list[list[int]], times_s: list[float] | None = None, kind: RequestKind = KIND) -> Requests:
    recording = Recording()
    for number, items in enumerate(sequence):
        keys = [item.to_bytes(32) for item in items]
        # The first 16 bytes have to differ.
        fresh = recording.add(kind, [key[::-1] for key in keys], None if times_s is None else times_s[number])
        recording.set_tokens([items[position] + 1 for position in fresh])
    return recording.finished()


@given(SEQUENCES)
def test_repetition_is_counted_as_by_hand(sequence: list[list[int]]) -> None:
    requests = recorded(sequence)
    found = statistics.repetition(requests, statistics.occurrences(requests))
    flat = [item for items in sequence for item in items]
    before: set[int] = set()
    over_time = without_new = 0
    for items in sequence:
        over_time += len(set(items) & before)
        without_new += set(items) <= before
        before |= set(items)
    assert (found.requests, found.items, found.distinct) == (len(sequence), len(flat), len(set(flat)))
    assert found.in_request == sum(len(items) - len(set(items)) for items in sequence)
    assert (found.over_time, found.requests_without_new) == (over_time, without_new)
    assert found.most_repeated == max(Counter(flat).values(), default=0)
    assert found.tokens == sum(item + 1 for item in flat)
    assert found.tokens_distinct == sum(item + 1 for item in set(flat))
    assert sum(own.items for own in found.intervals) == over_time
    if flat:
        assert found.steps[-1].items == len(flat)
        assert found.steps[-1].repeated_so_far == pytest.approx(1 - len(set(flat)) / len(flat))


@given(SEQUENCES, st.randoms(use_true_random=False))
def test_requests_are_taken_in_the_order_of_their_times(sequence: list[list[int]], random: object) -> None:
    times_s = [float(n) for n in range(len(sequence))]
    shuffled = list(zip(sequence, times_s, strict=True))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = recorded([items for items, _ in shuffled], [at_s for _, at_s in shuffled])
    expected = recorded(sequence, times_s)
    for requests in (found, expected):
        assert sorted(requests.times_s.tolist()) == requests.times_s.tolist()
    tokens = [requests.tokens[requests.ids].tolist() for requests in (found, expected)]
    assert tokens[0] == tokens[1] == [item + 1 for items in sequence for item in items]
    assert found.sizes.tolist() == expected.sizes.tolist()


def test_intervals_are_of_time_if_there_are_times() -> None:
    requests = recorded([[1], [1], [1, 1]], [1.8e9, 1.8e9 + 30, 1.8e9 + 7200])
    found = statistics.repetition(requests, statistics.occurrences(requests))
    assert [(own.label, own.items) for own in found.intervals if own.items] == [("1 min", 1), ("1 d", 1)]


def test_each_model_has_its_own_totals() -> None:
    recording = Recording()
    for model, key in (("a", b"1"), ("a", b"1"), ("b", b"2"), (None, b"3")):
        fresh = recording.add(KIND._replace(model=model), [key], None)
        recording.set_tokens([10] * len(fresh))
    requests = recording.finished()
    totals = statistics.by_model(requests, statistics.occurrences(requests))
    assert [(own.model, own.items, own.distinct, own.tokens, own.tokens_distinct) for own in totals] == [
        ("a", 2, 1, 20, 10), ("b", 1, 1, 10, 10), (None, 1, 1, 10, 10),
    ]  # fmt: skip


# --- tokens


def test_tokens_are_estimated_by_bytes_unless_they_are_given() -> None:
    counter = TokenCounter(None)
    assert counter.count("m", ItemKind.TOKENS, [1, 2, 3]) == 3
    assert counter.basis == "exact"
    assert counter.count("m", ItemKind.TEXT, "12345678") == 2
    assert counter.count("m", ItemKind.TEXT, "\u00e9\u00e9\u00e9") == 2
    assert counter.count("m", ItemKind.TEXT, "a") == 1
    assert counter.basis == "partly estimated"


def test_tokens_are_exact_for_the_models_of_the_vocabulary() -> None:
    counter = TokenCounter(lambda text: len(text) * 100)
    assert counter.count("text-embedding-3-small", ItemKind.TEXT, "ab") == 200
    assert counter.basis == "exact"
    assert counter.count("other", ItemKind.TEXT, "ab") == 1
    assert counter.basis == "partly estimated"


def test_without_its_vocabulary_tiktoken_is_not_used(tmp_path: Path) -> None:
    environment = {"TIKTOKEN_CACHE_DIR": str(tmp_path)}
    assert local_vocabulary(environment) is None
    url = b"https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    damaged = tmp_path / hashlib.sha1(url).hexdigest()  # noqa: S324
    damaged.write_bytes(b"damaged")
    assert local_vocabulary(environment) is None
    assert damaged.exists()


def test_numbers_of_a_long_sequence_fit() -> None:
    requests = recorded([[1] * 70_000])
    assert requests.sizes.tolist() == [70_000]
    assert requests.ids.dtype == np.uint32
