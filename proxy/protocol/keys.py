"""The cache key of an input item (pure).

A key is a BLAKE2b-256 over the msgpack encoding (type-tagged, length-prefixed) of everything that can change the
vector, followed by the item's bytes. Two items share a key only if all of that is equal. XXH3 would be faster, but an
attacker can construct two texts with equal XXH3 in seconds, and then one document would receive the other's vector.
"""

from array import array
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

import msgpack
import orjson

from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.header_kinds import Fields
from proxy.protocol.items import ItemKind
from proxy.protocol.records import SCOPE_BYTES
from proxy.steps import Steps, finish

_SCHEMA = 1
KEY_BYTES = 32
# Bytes hashed in one step, which takes a quarter of a millisecond; and the overhead of each item, in bytes.
_STEP_BYTES, _ITEM_BYTES = 128 * 1024, 2 * 1024
# Header bytes that are not UTF-8 are decoded to surrogate escapes, which this encodes to the same bytes.
pack = msgpack.Packer(unicode_errors="surrogateescape").pack


def derive(request: EmbeddingRequest, *, url: str, scope: Fields, vector_headers: Fields, epoch: int) -> list[bytes]:
    """The key of each item, in input order.

    ``url`` is where the request is sent, query included: it contains the upstream and, on Azure, the deployment.
    ``scope`` are the clients that share the entries, by default those with the same credentials. ``vector_headers`` are
    `proxy.protocol.identities.Identity.vector_affecting`. ``epoch`` is that of the model's weights: a key of one epoch
    finds no entry of another.
    """
    return finish(derive_in_steps(request, url=url, scope=scope, vector_headers=vector_headers, epoch=epoch))


def derive_in_steps(
    request: EmbeddingRequest, *, url: str, scope: Fields, vector_headers: Fields, epoch: int
) -> Steps[list[bytes]]:
    """`derive`, a few items or a part of one at a time."""
    common = _common(request, url, scope, vector_headers, epoch)
    items: Iterable[Any]
    encode: Callable[[Any], bytes] = bytes
    if request.kind is ItemKind.TEXT:
        items, encode = request.items, str.encode
    elif request.kind is ItemKind.WHOLE:
        # The parameters contain the whole body, so an item is identified by its position.
        items = (index.to_bytes(8) for index in range(len(request.items)))
    elif request.kind is ItemKind.TOKENS:
        items = (array("Q", item).tobytes() for item in request.items)
    else:
        items = map(_canonical, request.items)
    copy = blake2b(common, digest_size=KEY_BYTES).copy
    derived: list[bytes] = []
    left_bytes = _STEP_BYTES
    for item in items:
        state = copy()
        for start in range(0, len(item), _STEP_BYTES):
            part = encode(item[start : start + _STEP_BYTES])
            state.update(part)
            left_bytes -= len(part) + _ITEM_BYTES
            if left_bytes < 0:
                left_bytes = _STEP_BYTES
                yield
        derived.append(state.digest())
    return derived


class TextKeys:
    """Derives keys of further texts, as `derive` does for requests that differ from ``request`` only in these."""

    __slots__ = ("_copy",)

    def __init__(
        self, request: EmbeddingRequest, *, url: str, scope: Fields, vector_headers: Fields, epoch: int
    ) -> None:
        """The ``request`` is one of texts."""
        self._copy = blake2b(_common(request, url, scope, vector_headers, epoch), digest_size=KEY_BYTES).copy

    def of(self, texts: list[str]) -> list[bytes]:
        copy, derived = self._copy, []
        for text in map(str.encode, texts):
            state = copy()
            state.update(text)
            derived.append(state.digest())
        return derived


def _common(request: EmbeddingRequest, url: str, scope: Fields, vector_headers: Fields, epoch: int) -> bytes:
    """What the keys of all items begin with. The item follows as the last element, so its length need not be encoded.

    In epoch 0 this has no epoch, as in versions before there were epochs.
    """
    parts = (_SCHEMA, scope, url, vector_headers, request.model, _canonical(request.parameters), request.kind.value)
    packed: bytes = pack((*parts, epoch) if epoch else parts)
    return packed


def scope_fingerprint(scope: Fields) -> bytes:
    """Names a scope, in `proxy.protocol.records.SCOPE_BYTES` bytes, so that its entries can be told from others.

    Like a key, it is a hash of the credentials: it does not reveal them, but a guessed credential can be tested.
    """
    return blake2b(pack(scope), digest_size=SCOPE_BYTES, person=b"scope").digest()


def group(
    request: EmbeddingRequest, *, url: str, credentials: Fields, vector_headers: Fields, page: str | None = None
) -> bytes:
    """Equal for requests that may be merged into one upstream call: they differ only in their items.

    ``page`` is the Origin of a web page that sends the request, because the upstream's response depends on it.
    """
    rest = {name: value for name, value in request.fields.items() if name != "input"}
    packed: bytes = pack((credentials, url, vector_headers, request.kind.value, _canonical(rest), page))
    return packed


def _canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
