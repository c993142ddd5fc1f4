"""The body of a response whose vectors are base64, so that its length is known before it is made."""

from collections.abc import Iterator
from itertools import islice

from proxy.cache.entry import Entry, generated_base64
from proxy.http.long_response import Response
from proxy.protocol import embedding_response

_ITEMS_A_TURN = 64  # which take a tenth of a millisecond


def length_bytes(entries: list[Entry], end: bytes) -> int:
    """``end`` is what follows the last embedding."""
    return embedding_response.base64_length([entry.source.base64_length for entry in entries], end)


def parts(entries: list[Entry], end: bytes) -> Iterator[bytes]:
    """The parts, each made when it is needed."""
    return embedding_response.stream_parts(generated_base64(entries), len(entries), end, are_base64=True)


def in_turns(entries: list[Entry], end: bytes) -> Iterator[Response]:
    """The parts to write in each turn."""
    all_parts = parts(entries, end)
    while some := list(islice(all_parts, 2 * _ITEMS_A_TURN)):
        yield some
