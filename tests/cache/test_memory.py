import gc
import sys

import numpy as np
import orjson
import pytest

from proxy.cache.entry import Certainty, Entry, base64_texts, generated_base64
from proxy.cache.memory import Memory
from proxy.protocol import vectors
from proxy.protocol.records import Record
from proxy.protocol.vectors import DType, Encoding, Vector
from tests.support.dict_store import key_of as key


def record(vector: Vector | None = None, tokens: int = 1) -> Record:
    vector = vector or vectors.from_numbers(np.linspace(-1, 1, 1536, dtype=np.float32).astype(np.float64).tolist())
    return Record(vector=vector, model="m", tokens=tokens, tokens_exact=True, stored_at_s=0)


def entry(vector: Vector | None = None, tokens: int = 1) -> Entry:
    return Entry.of(record(vector, tokens))


def test_memory_stays_within_its_bytes() -> None:
    memory = Memory(max_bytes=1_000_000)
    for number in range(1000):
        memory.put(key(number), entry())
    assert 0 < memory.entries <= 1_000_000 // 6144
    assert memory.bytes <= 1_000_000


def test_texts_of_numbers_count_once_they_are_made() -> None:
    memory = Memory(max_bytes=10_000_000)
    memory.put(key(1), entry())
    before = memory.bytes
    held = memory.get(key(1))
    assert held is not None
    text = memory.text(key(1), held, Encoding.FLOAT)
    assert memory.bytes == before + len(text)
    assert memory.text(key(1), held, Encoding.FLOAT) is text


def test_making_the_text_of_an_evicted_entry_does_not_restore_it() -> None:
    memory = Memory(max_bytes=10_000_000)
    memory.text(key(1), entry(), Encoding.FLOAT)
    assert memory.entries == 0


def test_a_newer_entry_is_not_displaced_by_an_older_ones_text() -> None:
    memory = Memory(max_bytes=10_000_000)
    older, newer = entry(tokens=1), entry(tokens=2)
    memory.put(key(1), older)
    memory.put(key(1), newer)
    memory.text(key(1), older, Encoding.FLOAT)
    assert memory.get(key(1)) is newer


@pytest.mark.parametrize(
    "numbers", [[0.5, -1.25], [0.1, -0.2], [0.1 + 1e-12, 1 / 3], [1, -128], [255, 0], [70_000, 1]], ids=str
)
def test_both_texts_are_those_of_the_vector(numbers: list[float]) -> None:
    vector = vectors.from_numbers(numbers)
    memory, held = Memory(max_bytes=1000), entry(vector)
    assert memory.text(key(1), held, Encoding.BASE64) == vectors.base64_text(vector.dtype, vector.payload)
    assert orjson.loads(memory.text(key(1), held, Encoding.FLOAT)) == numbers


@pytest.mark.parametrize("dtype", DType, ids=lambda dtype: dtype.name)
def test_an_entry_has_all_of_its_record(dtype: DType) -> None:
    original = record(Vector(dtype, bytes(range(16))))
    held = Entry.of(original)
    held.numbers()
    assert held.record() == original
    assert (held.dimensions, held.model_version) == (original.vector.dimensions, ("m", original.vector.dimensions))
    assert held.base64_length == len(held.base64)
    assert list(generated_base64([held, held])) == base64_texts([held, held])
    assert base64_texts([held, held]) == [held.base64] * 2 == [vectors.base64_text(dtype, bytes(range(16)))] * 2


def test_the_garbage_collector_does_not_visit_entries() -> None:
    held = entry()
    held.numbers()
    assert not gc.is_tracked(held)
    assert not gc.is_tracked(held.source)


def test_a_million_entries_take_48_megabytes_besides_their_vectors() -> None:
    assert sys.getsizeof(entry()) == 48


def test_a_superseded_entry_has_its_own_numbers_and_its_successor() -> None:
    older, newer = entry(vectors.from_numbers([0.5, 1])), entry(vectors.from_numbers([0.25, 1]))
    assert older.numbers() == b"[0.5,1.0]"
    older.set_successor(newer)
    assert older.numbers() == b"[0.5,1.0]"
    assert not older.has_numbers  # so it weighs what it did before they were made
    older.pack()
    assert older.current is newer
    newer.set_successor(older)  # no cycle
    assert older.current is newer
    older.mark_stored(Certainty.REPLACED)
    assert older.current is older
    assert older.certainty is Certainty.REPLACED
    older.numbers()
    older.mark_stored(Certainty.CONFIRMED)
    assert older.has_numbers


def test_an_entry_shows_what_it_is() -> None:
    assert repr(entry(vectors.from_numbers([0.5]))).startswith("<Entry 'm' 1 x FLOAT32")


async def test_clear_discards_what_is_decided_and_not_superseded() -> None:
    memory = Memory(max_bytes=100_000_000)
    for number in range(1000):
        memory.put(key(number), Entry.of(record(), Certainty.INSERTING if number % 10 == 0 else Certainty.CONFIRMED))
    gone = memory.get(key(10))
    memory.discard(key(10))
    assert await memory.clear() == 900
    kept = [number for number in range(1000) if memory.get(key(number)) is not None]
    assert kept == [number for number in range(0, 1000, 10) if number != 10]
    assert memory.entries == len(kept)
    assert gone is not None
    assert await memory.clear() == 0
