"""The identity of one input item (pure).

A key is a BLAKE2b-256 over the msgpack encoding of everything that can change the vector, which is type-tagged and
length-prefixed, followed by the item's kind and bytes. Two items share a key only if all of that is equal.
XXH3 would be faster, but pairs of texts with equal XXH3 are made in seconds, and a planted document must not be able
to receive another's vector.
"""

from array import array
from hashlib import blake2b
from typing import Any

import msgpack
import orjson

from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.items import ItemKind

Fields = list[tuple[str, str]]  # header names and values

_SCHEMA = 1
KEY_BYTES = 32
# Header bytes that are not UTF-8 arrive as surrogate escapes and stand for themselves.
pack = msgpack.Packer(unicode_errors="surrogateescape").pack


def derive(request: EmbeddingRequest, *, url: str, scope: Fields, vector_headers: Fields) -> list[bytes]:
    """The key of each item, in input order.

    ``url`` is where the request is sent, query included: it says which upstream, and on Azure which deployment.
    ``scope`` says whose entries these are, by default the credentials'; ``vector_headers`` are of
    `proxy.protocol.identities.identity`.
    """
    common = pack(
        (
            _SCHEMA,
            scope,
            url,
            vector_headers,
            request.model,
            _canonical(request.parameters),
            request.kind.value,
        )
    )
    start = blake2b(common, digest_size=KEY_BYTES)
    if request.kind is ItemKind.WHOLE:
        # The whole body is in the parameters, so that an item is its place.
        return [
            blake2b(common + index.to_bytes(8), digest_size=KEY_BYTES).digest() for index in range(len(request.items))
        ]
    keys = []
    for item in request.items:
        state = start.copy()
        # The item is the last element and runs to the end, so it needs no length.
        state.update(_item_bytes(request.kind, item))
        keys.append(state.digest())
    return keys


def group(
    request: EmbeddingRequest, *, url: str, credentials: Fields, vector_headers: Fields, page: str | None = None
) -> bytes:
    """Equal for requests that differ in nothing but their items, neutral fields and encoding included.

    ``page`` is the origin of the web page that asks: the upstream's response says whether that one may read it.
    """
    rest = {name: value for name, value in request.fields.items() if name != "input"}
    said: bytes = pack((credentials, url, vector_headers, request.kind.value, _canonical(rest), page))
    return said


def _canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _item_bytes(kind: ItemKind, item: Any) -> bytes:
    if kind is ItemKind.TEXT:
        return item.encode()  # type: ignore[no-any-return]
    if kind is ItemKind.TOKENS:
        return array("Q", item).tobytes()
    return _canonical(item)
