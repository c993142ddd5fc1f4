"""What is stored under a key, and its bytes (pure).

The bytes are one msgpack array followed by its XXH3-64. The checksum finds rot and truncation, cheaply, over the whole
record; it is no defence against someone who can write to the store. Against these the operator can give a secret, and
then a keyed BLAKE2b (a MAC as it is, RFC 7693 §2.9) follows, without which no record counts.
"""

from dataclasses import dataclass
from hashlib import blake2b
from hmac import compare_digest

import msgpack
import xxhash

from proxy.vectors import DType, Vector, is_whole

_FORMAT = 1
_CHECKSUM_BYTES = 8
_TAG_BYTES = 16
_FIELDS = 9
_DTYPES = frozenset(DType)


class InvalidRecord(ValueError):
    """Bytes that are not a record of this key: foreign, damaged, or of another format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One item's vector and what is to be said with it.

    The key that a record is stored under must determine everything that can change its vector (`proxy.keys`).
    """

    vector: Vector
    model: str  # as the upstream's answer named it
    tokens: int  # what the upstream billed for the item
    tokens_exact: bool  # False where tokens were shared out over the items of one call
    stored_at_s: int  # Unix time


def encode(key: bytes, record: Record, secret: bytes | None = None) -> bytes:
    packed: bytes = msgpack.packb(
        (
            _FORMAT,
            key,
            record.vector.dtype.value,
            record.vector.dimensions,
            record.tokens,
            record.tokens_exact,
            record.model,
            record.stored_at_s,
            record.vector.payload,
        )
    )
    data = packed + xxhash.xxh3_64_digest(packed)
    return data if secret is None else data + _tag(data, secret)


def decode(key: bytes, data: bytes, secret: bytes | None = None) -> Record:
    """The record under ``key``. Raises `InvalidRecord` for anything that does not check out."""
    if secret is not None:
        data, tag = data[:-_TAG_BYTES], data[-_TAG_BYTES:]
        if not compare_digest(tag, _tag(data, secret)):
            raise InvalidRecord("tag")
    packed, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if xxhash.xxh3_64_digest(packed) != checksum:
        raise InvalidRecord("checksum")
    try:
        fields = msgpack.unpackb(packed, use_list=False)
    except (ValueError, msgpack.UnpackException):
        raise InvalidRecord("msgpack") from None
    if not isinstance(fields, tuple) or len(fields) != _FIELDS or fields[0] != _FORMAT:
        raise InvalidRecord("format")
    return _checked(key, fields)


def _tag(data: bytes, secret: bytes) -> bytes:
    # The key's own length is bounded; a hash of the secret is not.
    return blake2b(data, key=blake2b(secret).digest(), digest_size=_TAG_BYTES).digest()


def _checked(key: bytes, fields: tuple[object, ...]) -> Record:
    match fields:
        case (
            _,
            bytes(own_key),
            int(dtype),
            int(dimensions),
            int(tokens),
            bool(exact),
            str(model),
            int(at),
            bytes(data),
        ):
            if own_key != key:
                raise InvalidRecord("key")
            if dtype not in _DTYPES:
                raise InvalidRecord("dtype")
            vector = Vector(DType(dtype), data)
            if not is_whole(vector) or vector.dimensions != dimensions:
                raise InvalidRecord("dimensions")
            return Record(vector=vector, model=model, tokens=tokens, tokens_exact=exact, stored_at_s=at)
    raise InvalidRecord("field types")
