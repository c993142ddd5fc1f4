"""A record is decoded completely or not at all."""

from hashlib import blake2b

import msgpack
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocol import records
from proxy.protocol.records import Flaw, InvalidRecord, Record, RecordKey
from proxy.protocol.vectors import DType, Vector

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
def any_record(draw: st.DrawFn, scopes: st.SearchStrategy[bytes] | None = None) -> Record:
    scopes = SCOPES if scopes is None else scopes
    dtype = draw(st.sampled_from(list(DType)))
    dimensions = draw(st.integers(1, 64))
    size = SIZES[dtype] * dimensions
    return Record(
        vector=Vector(dtype, draw(st.binary(min_size=size, max_size=size))),
        model=draw(st.text()),
        tokens=draw(st.integers(0, 2**40)),
        tokens_exact=draw(st.booleans()),
        stored_at_s=draw(st.integers(0, 2**33)),
        scope=draw(scopes),
    )


NO_SCOPE = st.just(b"")
SCOPES = NO_SCOPE | st.binary(min_size=records.SCOPE_BYTES, max_size=records.SCOPE_BYTES)


@given(st.binary(min_size=32, max_size=32), any_record())
def test_a_record_is_decoded_as_it_was_encoded(key: bytes, record: Record) -> None:
    assert records.decode(key, records.encode(key, record)) == record


@given(st.data())
def test_every_changed_byte_is_detected(data: st.DataObject) -> None:
    good = records.encode(KEY, RECORD)
    position = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidRecord):
        records.decode(KEY, bytes(bad))


@given(st.integers(0, 6000))
def test_truncation_is_detected(length: int) -> None:
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


SCOPE = b"\x01\x02\x03\x04\x05\x06\x07\x08"
SCOPED_FIELDS = [3, *GOOD_FIELDS[1:], SCOPE]


def test_the_format_is_as_written_here() -> None:
    assert records.decode(KEY, sealed(GOOD_FIELDS)).vector.dimensions == 2
    assert records.decode(KEY, sealed(GOOD_FIELDS)).scope == b""
    scoped = records.decode(KEY, sealed(SCOPED_FIELDS))
    assert scoped.scope == SCOPE
    assert records.encode(KEY, scoped) == sealed(SCOPED_FIELDS)


@pytest.mark.parametrize(
    ("fields", "flaw"),
    [
        ([1, *SCOPED_FIELDS[1:]], Flaw.FORMAT),  # a format without a scope that has one
        ([3, *GOOD_FIELDS[1:]], Flaw.FORMAT),
        ([5, *SCOPED_FIELDS[1:]], Flaw.FORMAT),
        ([*SCOPED_FIELDS[:-1], b""], Flaw.FORMAT),
        ([*SCOPED_FIELDS[:-1], SCOPE[:-1]], Flaw.FORMAT),
        ([*SCOPED_FIELDS[:-1], SCOPE + b"\0"], Flaw.FORMAT),
        ([*SCOPED_FIELDS[:-1], "12345678"], Flaw.FIELD_TYPES),
        ([*SCOPED_FIELDS, SCOPE], Flaw.FORMAT),
        ([4, *SCOPED_FIELDS[1:]], Flaw.OTHER_KEY),  # it is not tagged
    ],
)
def test_a_scope_has_its_length_and_its_format(fields: list[object], flaw: Flaw) -> None:
    assert flaw_of(sealed(fields), None) is flaw


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


FIELDS = st.one_of(
    st.none(), st.booleans(), st.integers(0, 9), st.integers(-(2**63), 2**64 - 1), st.floats(), st.just(2.0),
    st.binary(), st.just(KEY), st.text(), st.lists(st.booleans(), max_size=2), st.dictionaries(st.text(), st.none()),
)  # fmt: skip


def expected_flaw(fields: list[object]) -> Flaw | None:
    version, key, dtype, dimensions, _, _, _, _, payload = fields
    if version not in (1, 2):
        return Flaw.FORMAT
    if [type(field) for field in fields] != [int, bytes, int, int, int, bool, str, int, bytes]:
        return Flaw.FIELD_TYPES
    if key != KEY:
        return Flaw.KEY
    if dtype not in SIZES:
        return Flaw.DTYPE
    assert isinstance(dtype, int)
    assert isinstance(payload, bytes)
    return None if payload and len(payload) == dimensions * SIZES[DType(dtype)] else Flaw.DIMENSIONS  # type: ignore[operator]


@given(st.lists(st.tuples(st.integers(0, 8), FIELDS), max_size=3))
def test_a_sealed_array_is_a_record_only_with_the_types_and_values_of_one(changes: list[tuple[int, object]]) -> None:
    fields = GOOD_FIELDS.copy()
    for position, value in changes:
        fields[position] = value
    flaw = expected_flaw(fields)
    if fields[0] == 2:
        flaw = Flaw.FIELD_TYPES if type(fields[0]) is float else Flaw.OTHER_KEY  # it is not tagged
    if flaw is not None:
        assert flaw_of(sealed(fields), None) is flaw
        return
    record = records.decode(KEY, sealed(fields))
    assert [record.vector.dtype, record.vector.payload, record.model] == [fields[2], fields[8], fields[6]]
    assert [record.tokens, record.tokens_exact, record.stored_at_s] == [fields[4], fields[5], fields[7]]


@pytest.mark.parametrize(
    ("packed", "flaw"),
    [
        (b"\xdd\xff\xff\xff\xff", Flaw.MSGPACK),  # an array of four billion elements
        (b"\x91" * 100_000, Flaw.MSGPACK),
        (b"\x99\x01\xc6\xff\xff\xff\xff", Flaw.MSGPACK),  # a string of four billion bytes
        (b"\x99\x01\xdd\xff\xff\xff\xff", Flaw.MSGPACK),
        (b"\x99\x01" + b"\x91" * 100_000, Flaw.MSGPACK),
        (b"\x99" + msgpack.packb([1, KEY, 0, 2, 12, True])[1:] + b"\xa1\xff\x01\xc4\x00", Flaw.MSGPACK),  # not UTF-8
        (msgpack.packb(GOOD_FIELDS) + b"\x00", Flaw.MSGPACK),
    ],
)
def test_what_msgpack_declares_is_not_believed(packed: bytes, flaw: Flaw) -> None:
    assert flaw_of(packed + xxhash.xxh3_64_digest(packed), None) is flaw


def test_a_1536_d_vector_costs_at_most_160_bytes_more_than_its_floats() -> None:
    assert len(records.encode(KEY, RECORD)) <= 1536 * 4 + 160


# --- with a record key

SECRET = b"s" * 32
RECORD_KEY = RecordKey(SECRET)
OTHER_KEYS = st.binary(min_size=32, max_size=200).filter(lambda secret: secret != SECRET).map(RecordKey)


def flaw_of(data: bytes, record_key: RecordKey | None, key: bytes = KEY) -> Flaw:
    with pytest.raises(InvalidRecord) as caught:
        records.decode(key, data, record_key)
    return caught.value.flaw


def tagged_by_an_earlier_version(key: bytes, record: Record, secret: bytes) -> bytes:
    """A record of format 1, and behind its checksum a tag that does not say by which record key it is."""
    sealed = records.encode(key, record)
    return sealed + blake2b(sealed, key=blake2b(secret).digest(), digest_size=16).digest()


def with_checksum(data: bytes) -> bytes:
    """What someone who forges a record does, too."""
    return data[:-8] + xxhash.xxh3_64_digest(data[:-8])


@given(st.binary(min_size=32, max_size=32), any_record(), st.binary(min_size=32, max_size=200))
def test_round_trip_with_a_record_key(key: bytes, record: Record, secret: bytes) -> None:
    # Two proxies make their record keys of the same secret.
    assert records.decode(key, records.encode(key, record, RecordKey(secret)), RecordKey(secret)) == record


@given(any_record(NO_SCOPE))
def test_records_of_earlier_versions_are_still_read(record: Record) -> None:
    assert records.decode(KEY, tagged_by_an_earlier_version(KEY, record, SECRET), RECORD_KEY) == record
    assert records.decode(KEY, records.encode(KEY, record), None) == record


def test_without_a_record_key_the_bytes_are_those_of_earlier_versions() -> None:
    fields = [1, KEY, 0, 1536, 12, True, "text-embedding-3-small", 1_700_000_000, RECORD.vector.payload]
    assert records.encode(KEY, RECORD) == sealed(fields)


@given(st.data(), any_record())
def test_a_damaged_tagged_record_is_damaged_and_not_forged(data: st.DataObject, record: Record) -> None:
    good = records.encode(KEY, record, RECORD_KEY)
    position = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[position] ^= data.draw(st.integers(1, 255))
    assert flaw_of(bytes(bad), RECORD_KEY) is Flaw.CHECKSUM


@given(st.data(), any_record())
def test_no_byte_changed_by_a_forger_passes_the_tag(data: st.DataObject, record: Record) -> None:
    good = records.encode(KEY, record, RECORD_KEY)
    position = data.draw(st.integers(0, len(good) - 9))
    bad = bytearray(good)
    bad[position] ^= data.draw(st.integers(1, 255))
    # Whoever changes the ID or the format besides gets one of the others, and no record either.
    names_our_key = position >= 2 and not len(good) - 32 <= position < len(good) - 24
    flaws = {Flaw.TAG} if names_our_key else {Flaw.OTHER_KEY, Flaw.UNTAGGED}
    assert flaw_of(with_checksum(bytes(bad)), RECORD_KEY) in flaws


@given(st.data(), any_record(NO_SCOPE))
def test_no_byte_changed_in_a_record_of_an_earlier_version_passes_the_tag(data: st.DataObject, record: Record) -> None:
    good = tagged_by_an_earlier_version(KEY, record, SECRET)
    position = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[position] ^= data.draw(st.integers(1, 255))
    is_in_tag = position >= len(good) - 16
    assert flaw_of(bytes(bad), RECORD_KEY) is (Flaw.OTHER_KEY if is_in_tag else Flaw.CHECKSUM)


@given(st.data(), any_record())
def test_no_missing_or_added_bytes_pass_the_tag(data: st.DataObject, record: Record) -> None:
    good = records.encode(KEY, record, RECORD_KEY)
    for bad in (good[: data.draw(st.integers(0, len(good) - 1))], good + data.draw(st.binary(min_size=1))):
        # Sixteen bytes after a checksum are an earlier version's tag, by no key that is known.
        is_old_form = len(bad) == len(good) + 16
        assert flaw_of(bad, RECORD_KEY) is (Flaw.OTHER_KEY if is_old_form else Flaw.CHECKSUM)


@given(any_record())
def test_a_record_from_before_the_record_key_was_set_is_untagged_and_not_forged(record: Record) -> None:
    assert flaw_of(records.encode(KEY, record), RECORD_KEY) is Flaw.UNTAGGED


@given(any_record(), OTHER_KEYS)
def test_a_record_under_another_record_key_is_not_forged(record: Record, other: RecordKey) -> None:
    assert flaw_of(records.encode(KEY, record, other), RECORD_KEY) is Flaw.OTHER_KEY


@given(any_record(NO_SCOPE), st.binary(min_size=32, max_size=200).filter(lambda secret: secret != SECRET))
def test_a_record_of_an_earlier_version_under_another_secret_is_not_forged(record: Record, secret: bytes) -> None:
    assert flaw_of(tagged_by_an_earlier_version(KEY, record, secret), RECORD_KEY) is Flaw.OTHER_KEY


@given(any_record(), OTHER_KEYS)
def test_a_record_that_names_our_record_key_and_has_another_tag_is_forged(record: Record, other: RecordKey) -> None:
    tagged = records.encode(KEY, record, other)[:-32] + RECORD_KEY.id
    assert flaw_of(with_checksum(tagged + other.tag(tagged) + bytes(8)), RECORD_KEY) is Flaw.TAG


@given(any_record())
def test_without_a_record_key_a_tagged_record_is_not_damaged(record: Record) -> None:
    for data in (records.encode(KEY, record, RECORD_KEY), tagged_by_an_earlier_version(KEY, record, SECRET)):
        assert flaw_of(data, None) is Flaw.OTHER_KEY


@given(any_record(), st.binary(min_size=32, max_size=32).filter(lambda key: key != KEY))
def test_a_tagged_record_can_not_be_moved_to_another_key(record: Record, key: bytes) -> None:
    assert flaw_of(records.encode(KEY, record, RECORD_KEY), RECORD_KEY, key) is Flaw.KEY


@given(st.binary())
def test_foreign_bytes_are_no_tagged_record(data: bytes) -> None:
    assert flaw_of(data, RECORD_KEY) is Flaw.CHECKSUM


@given(st.binary())
def test_foreign_bytes_with_a_checksum_are_no_tagged_record(data: bytes) -> None:
    assert flaw_of(data + xxhash.xxh3_64_digest(data), RECORD_KEY) in {Flaw.UNTAGGED, Flaw.OTHER_KEY}


def test_a_record_key_shows_no_secret() -> None:
    assert "s" * 8 not in repr(RECORD_KEY)


@given(any_record())
def test_a_record_is_inspected_without_its_record_key(record: Record) -> None:
    assert records.inspect(KEY, records.encode(KEY, record)) == (record, False)
    assert records.inspect(KEY, records.encode(KEY, record, RECORD_KEY)) == (record, True)
    assert records.inspect(KEY, tagged_by_an_earlier_version(KEY, record, SECRET)) == (record, True)
    with pytest.raises(InvalidRecord) as error:
        records.inspect(bytes(32), records.encode(KEY, record))
    assert error.value.flaw is Flaw.KEY


@given(st.data(), any_record(), st.sampled_from([None, "new", "old"]))
def test_inspection_detects_every_changed_byte_outside_old_tags(
    data: st.DataObject, record: Record, tag: str | None
) -> None:
    good = (
        tagged_by_an_earlier_version(KEY, record, SECRET)
        if tag == "old"
        else records.encode(KEY, record, RECORD_KEY if tag else None)
    )
    position = data.draw(st.integers(0, len(good) - 1 - (16 if tag == "old" else 0)))
    bad = bytearray(good)
    bad[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidRecord):
        records.inspect(KEY, bytes(bad))
