"""The record stored under a key, and its encoding (pure).

A record is one msgpack array, whose first element is the format, followed by the XXH3-64 of all bytes before it. The
checksum detects corruption and truncation cheaply; it does not protect against someone who can write to the store. For
that, the operator can configure a record key. Then the array is followed by an ID of that key and a keyed BLAKE2b tag
(keyed BLAKE2b is a MAC, RFC 7693 §2.9), and only records with a valid tag are served:

    format 1:  array of 9, checksum
    format 2:  array of 9, key ID, tag, checksum
    format 3:  array of 10, checksum
    format 4:  array of 10, key ID, tag, checksum

The tenth element is the fingerprint of the scope that the record belongs to (`proxy.protocol.keys.scope_fingerprint`).
Earlier versions wrote none, and the tag after the checksum of a format 1 record, without a key ID. Such records are
still read. What has no scope is still written in the formats 1 and 2.
"""

from enum import StrEnum
from hashlib import blake2b
from hmac import compare_digest
from typing import Literal

import msgpack
import msgspec
import xxhash
from msgspec import Struct

from proxy.protocol.vectors import ITEM_BYTES, DType, Vector

_UNTAGGED, _TAGGED, _SCOPED, _SCOPED_TAGGED = 1, 2, 3, 4  # formats
_checksum = xxhash.xxh3_64_digest
_CHECKSUM_BYTES = 8
_KEY_ID_BYTES = 8
_TAG_BYTES = 16
_FIELDS = 9
SCOPE_BYTES = 8
_SCOPE_LENGTHS = {_UNTAGGED: 0, _TAGGED: 0, _SCOPED: SCOPE_BYTES, _SCOPED_TAGGED: SCOPE_BYTES}
_FIELD_TYPES = [int, bytes, int, int, int, bool, str, int, bytes]
# The first bytes of the array of a tagged record: its number of elements and the first element.
_TAGGED_HEADS = frozenset(
    msgpack.packb([0] * length)[:1] + msgpack.packb(number)
    for length, number in ((_FIELDS, _TAGGED), (_FIELDS + 1, _SCOPED_TAGGED))
)
_HEAD_BYTES = 2


# In place of a model's name, in records of what the proxy keeps for itself. No upstream's model has such a name.
OWN = "\0embedding-proxy"


class Flaw(StrEnum):
    """Why stored bytes can't be served as a record. The values are labels of a metric.

    An attacker who can write to the store chooses which of these applies: they can leave out the tag, or name an
    unknown record key. So only `TAG` and `KEY` are evidence of tampering, and the others do not rule it out.
    """

    CHECKSUM = "checksum"  # damaged, truncated, or not written by any version of the proxy
    UNTAGGED = "untagged"  # an intact record without a tag, read by a proxy that has a record key
    OTHER_KEY = "other-key"  # an intact record with the tag of a record key that this proxy does not have
    TAG = "tag"  # an intact record that names this proxy's record key, but whose tag is not by that key
    KEY = "key"  # an intact record of another cache key
    FORMAT = "format"  # an intact array of an unknown format
    MSGPACK = "msgpack"  # intact bytes that are not msgpack
    FIELD_TYPES = "field types"
    DTYPE = "dtype"
    DIMENSIONS = "dimensions"


FORGED = (Flaw.TAG, Flaw.KEY)  # caused only by tampering or a damaged database file


class InvalidRecord(ValueError):
    """Stored bytes that must not be served as the record of this key."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(flaw.value)
        self.flaw = flaw


class RecordKey:
    """A secret that tags records. Instances with the same secret are interchangeable."""

    def __init__(self, secret: bytes) -> None:
        # The length of a BLAKE2b key is bounded; a hash of the secret has a fixed length.
        self._key = blake2b(secret).digest()
        self.id = blake2b(b"record key ID", key=self._key, digest_size=_KEY_ID_BYTES).digest()

    def __repr__(self) -> str:
        return f"<RecordKey {self.id.hex()}>"

    def tag(self, data: bytes | memoryview) -> bytes:
        return blake2b(data, key=self._key, digest_size=_TAG_BYTES).digest()

    def verifies(self, data: memoryview, tag: bytes | memoryview) -> bool:
        return compare_digest(tag, self.tag(data))


class Record(Struct, frozen=True, kw_only=True, gc=False):
    """One item's vector and the metadata that a response needs.

    The key that a record is stored under must determine everything that can change its vector (`proxy.protocol.keys`).
    """

    vector: Vector
    model: str  # as the upstream's response named it
    tokens: int  # what the upstream billed for the item
    tokens_exact: bool  # False if the tokens of one call were apportioned to its items
    stored_at_s: int  # Unix time
    scope: bytes = b""  # the fingerprint of the scope that it belongs to; empty if that is not known
    numbers: bytes | None = None  # the vector's JSON as the upstream wrote it, if memory is to keep that; not stored


class RecordFields(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The array of a record: the data of a `Record`, but cheaper to make, for code that makes something else of it."""

    format: Literal[1, 2, 3, 4]
    key: bytes
    dtype: DType
    dimensions: int
    tokens: int
    tokens_exact: bool
    model: str
    stored_at_s: int
    payload: bytes
    scope: bytes = b""


_unpack = msgspec.msgpack.Decoder(RecordFields).decode


def encode(key: bytes, record: Record, record_key: RecordKey | None = None) -> bytes:
    untagged, tagged = (_SCOPED, _SCOPED_TAGGED) if record.scope else (_UNTAGGED, _TAGGED)
    fields = (
        untagged if record_key is None else tagged,
        key,
        record.vector.dtype.value,
        record.vector.dimensions,
        record.tokens,
        record.tokens_exact,
        record.model,
        record.stored_at_s,
        record.vector.payload,
    )
    packed: bytes = msgpack.packb((*fields, record.scope) if record.scope else fields)
    if record_key is not None:
        packed += record_key.id
        packed += record_key.tag(packed)
    return packed + _checksum(packed)


def decode(key: bytes, data: bytes, record_key: RecordKey | None = None) -> Record:
    """The record under ``key``. Raises `InvalidRecord`, like `unpack`."""
    return _record(unpack(key, data, record_key))


def unpack(key: bytes, data: bytes, record_key: RecordKey | None = None) -> RecordFields:
    """The fields of the record under ``key``. Raises `InvalidRecord` for anything that must not be served.

    With a ``record_key``, only data with a valid tag is unpacked.
    """
    body = memoryview(data)[:-_CHECKSUM_BYTES]
    if not data.endswith(_checksum(body)):
        return _fields(key, _verified_old(data, record_key))
    if data[:_HEAD_BYTES] in _TAGGED_HEADS:
        return _fields(key, _verified(body, record_key))
    if record_key is not None:
        raise InvalidRecord(Flaw.UNTAGGED)
    return _fields(key, body)


def inspect(key: bytes, data: bytes) -> tuple[Record, bool]:
    """The record under ``key``, and whether it has a tag. The tag is not verified, so the record must not be served.

    Raises `InvalidRecord`, with any flaw but `Flaw.UNTAGGED`, `Flaw.OTHER_KEY` and `Flaw.TAG`.
    """
    body = memoryview(data)[:-_CHECKSUM_BYTES]
    is_tagged = data[:_HEAD_BYTES] in _TAGGED_HEADS
    if _checksum(body) != data[-_CHECKSUM_BYTES:]:  # damaged, or tagged by an earlier version
        is_tagged, body = True, body[: len(body) + _CHECKSUM_BYTES - _TAG_BYTES]
        if _checksum(body[:-_CHECKSUM_BYTES]) != body[-_CHECKSUM_BYTES:]:
            raise InvalidRecord(Flaw.CHECKSUM)
        body = body[:-_CHECKSUM_BYTES]
    elif is_tagged:
        body = body[: -_KEY_ID_BYTES - _TAG_BYTES]
    return _record(_fields(key, body)), is_tagged


def _fields(key: bytes, packed: bytes | memoryview) -> RecordFields:
    """The fields of an array. Raises `InvalidRecord`."""
    try:
        fields = _unpack(packed)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRecord(_flaw(key, packed)) from None
    if fields.key != key:
        raise InvalidRecord(Flaw.KEY)
    dimensions, payload = fields.dimensions, fields.payload
    if dimensions <= 0 or len(payload) != dimensions * ITEM_BYTES[fields.dtype]:
        raise InvalidRecord(Flaw.DIMENSIONS)
    if len(fields.scope) != _SCOPE_LENGTHS[fields.format]:
        raise InvalidRecord(Flaw.FORMAT)
    return fields


def _record(fields: RecordFields) -> Record:
    return Record(
        vector=Vector(fields.dtype, fields.payload), model=fields.model, tokens=fields.tokens,
        tokens_exact=fields.tokens_exact, stored_at_s=fields.stored_at_s, scope=fields.scope,
    )  # fmt: skip


def _verified(body: memoryview, record_key: RecordKey | None) -> memoryview:
    """The array of a tagged record without its checksum. Raises `InvalidRecord`."""
    tagged, tag = body[:-_TAG_BYTES], body[-_TAG_BYTES:]
    packed, key_id = tagged[:-_KEY_ID_BYTES], tagged[-_KEY_ID_BYTES:]
    if record_key is None or key_id != record_key.id:
        raise InvalidRecord(Flaw.OTHER_KEY)
    if not record_key.verifies(tagged, tag):
        raise InvalidRecord(Flaw.TAG)
    return packed


def _verified_old(data: bytes, record_key: RecordKey | None) -> memoryview:
    """The array of a record that an earlier version tagged. Raises `InvalidRecord`.

    It contains no key ID. So a tag that is not by ``record_key`` may be by a previous key: no evidence of tampering.
    """
    tagged, tag = memoryview(data)[:-_TAG_BYTES], data[-_TAG_BYTES:]
    packed, checksum = tagged[:-_CHECKSUM_BYTES], tagged[-_CHECKSUM_BYTES:]
    if _checksum(packed) != checksum:
        raise InvalidRecord(Flaw.CHECKSUM)
    if record_key is None or not record_key.verifies(tagged, tag):
        raise InvalidRecord(Flaw.OTHER_KEY)
    return packed


def _flaw(key: bytes, packed: bytes | memoryview) -> Flaw:
    """Why ``packed`` is not the array of a record."""
    try:
        # Not by msgspec, which allocates what an array declares.
        fields = msgpack.unpackb(packed, use_list=False)
    except (ValueError, msgpack.UnpackException):
        return Flaw.MSGPACK
    if not isinstance(fields, tuple) or not _FIELDS <= len(fields) <= _FIELDS + 1:
        return Flaw.FORMAT
    has_scope = len(fields) > _FIELDS
    if fields[0] not in ((_SCOPED, _SCOPED_TAGGED) if has_scope else (_UNTAGGED, _TAGGED)):
        return Flaw.FORMAT
    if [type(field) for field in fields] != [*_FIELD_TYPES, *([bytes] if has_scope else [])]:
        return Flaw.FIELD_TYPES
    return Flaw.DTYPE if fields[1] == key else Flaw.KEY
