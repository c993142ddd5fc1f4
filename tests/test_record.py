"""A record comes back whole or not at all."""

import msgpack
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from proxy import record as records
from proxy.record import InvalidRecord, Record
from proxy.vectors import DType, Vector

KEY = bytes(range(32))
RECORD = Record(
    vector=Vector(DType.FLOAT32, b"\0\0\x80\x3f" * 1536),
    model="text-embedding-3-small",
    tokens=12,
    tokens_exact=True,
    stored_at_s=1_700_000_000,
)
SIZES = {
    DType.FLOAT32: 4,
    DType.FLOAT32_SHORTEST: 4,
    DType.FLOAT64: 8,
    DType.INT8: 1,
    DType.UINT8: 1,
    DType.INT32: 4,
    DType.INT64: 8,
    DType.INT8_PACKED: 1,
    DType.UINT8_PACKED: 1,
}


@st.composite
def any_record(draw: st.DrawFn) -> Record:
    dtype = draw(st.sampled_from(list(DType)))
    dimensions = draw(st.integers(1, 64))
    size = SIZES[dtype] * dimensions
    return Record(
        vector=Vector(dtype, draw(st.binary(min_size=size, max_size=size))),
        model=draw(st.text()),
        tokens=draw(st.integers(0, 2**40)),
        tokens_exact=draw(st.booleans()),
        stored_at_s=draw(st.integers(0, 2**33)),
    )


@given(st.binary(min_size=32, max_size=32), any_record())
def test_round_trip(key: bytes, record: Record) -> None:
    assert records.decode(key, records.encode(key, record)) == record


@given(st.data())
def test_no_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    good = records.encode(KEY, RECORD)
    position = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidRecord):
        records.decode(KEY, bytes(bad))


@given(st.integers(0, 6000))
def test_no_missing_tail_goes_unnoticed(length: int) -> None:
    with pytest.raises(InvalidRecord):
        records.decode(KEY, records.encode(KEY, RECORD)[:length])


@given(st.binary())
def test_foreign_bytes_are_no_record(data: bytes) -> None:
    with pytest.raises(InvalidRecord):
        records.decode(KEY, data)


def test_another_keys_record_is_no_record() -> None:
    with pytest.raises(InvalidRecord, match="key"):
        records.decode(bytes(32), records.encode(KEY, RECORD))


GOOD_FIELDS: list[object] = [1, KEY, 0, 2, 12, True, "m", 1_700_000_000, b"\0\0\x80\x3f" * 2]


def sealed(fields: object) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed + xxhash.xxh3_64_digest(packed)


def test_the_format_is_as_written_here() -> None:
    assert records.decode(KEY, sealed(GOOD_FIELDS)).vector.dimensions == 2


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, 2),
        (2, 99),
        (2, "0"),
        (3, 3),
        (4, None),
        (5, 1),
        (6, b"m"),
        (7, 1.5),
        (8, b""),
        (8, b"\0\0\x80\x3f\0"),
        (8, ""),
    ],
)
def test_a_sealed_array_with_one_wrong_field_is_no_record(position: int, value: object) -> None:
    fields = GOOD_FIELDS.copy()
    fields[position] = value
    with pytest.raises(InvalidRecord):
        records.decode(KEY, sealed(fields))


@pytest.mark.parametrize("value", [None, [], {}, [1], "record", GOOD_FIELDS[:-1], [*GOOD_FIELDS, 1]])
def test_sealed_msgpack_of_another_shape_is_no_record(value: object) -> None:
    with pytest.raises(InvalidRecord):
        records.decode(KEY, sealed(value))


def test_sealed_bytes_that_are_not_msgpack_are_no_record() -> None:
    with pytest.raises(InvalidRecord):
        records.decode(KEY, b"\xc1" + xxhash.xxh3_64_digest(b"\xc1"))


def test_a_1536_d_vector_costs_at_most_160_bytes_more_than_its_floats() -> None:
    assert len(records.encode(KEY, RECORD)) <= 1536 * 4 + 160


# --- with a secret

SECRET = b"s" * 32
OTHER_SECRETS = st.none() | st.binary(min_size=32, max_size=200).filter(lambda secret: secret != SECRET)


@given(st.binary(min_size=32, max_size=32), any_record(), st.binary(min_size=32, max_size=200))
def test_round_trip_with_a_secret(key: bytes, record: Record, secret: bytes) -> None:
    assert records.decode(key, records.encode(key, record, secret), secret) == record


@given(st.data(), any_record())
def test_no_changed_byte_passes_the_tag(data: st.DataObject, record: Record) -> None:
    good = records.encode(KEY, record, SECRET)
    position = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidRecord, match="tag"):
        records.decode(KEY, bytes(bad), SECRET)


@given(st.data(), any_record())
def test_no_missing_or_added_bytes_pass_the_tag(data: st.DataObject, record: Record) -> None:
    good = records.encode(KEY, record, SECRET)
    for bad in (good[: data.draw(st.integers(0, len(good) - 1))], good + data.draw(st.binary(min_size=1))):
        with pytest.raises(InvalidRecord, match="tag"):
            records.decode(KEY, bad, SECRET)


@given(any_record(), OTHER_SECRETS)
def test_a_record_of_who_does_not_have_the_secret_is_no_record(record: Record, secret: bytes | None) -> None:
    """Its checksum is as good as any: without a tag, or under another secret."""
    with pytest.raises(InvalidRecord, match="tag"):
        records.decode(KEY, records.encode(KEY, record, secret), SECRET)


@given(any_record())
def test_without_the_secret_a_tagged_record_is_no_record(record: Record) -> None:
    with pytest.raises(InvalidRecord, match="checksum"):
        records.decode(KEY, records.encode(KEY, record, SECRET))


@given(any_record(), st.binary(min_size=32, max_size=32).filter(lambda key: key != KEY))
def test_a_tagged_record_can_not_be_moved_to_another_key(record: Record, key: bytes) -> None:
    with pytest.raises(InvalidRecord, match="key"):
        records.decode(key, records.encode(KEY, record, SECRET), SECRET)


@given(st.binary())
def test_foreign_bytes_are_no_tagged_record(data: bytes) -> None:
    with pytest.raises(InvalidRecord, match="tag"):
        records.decode(KEY, data, SECRET)
