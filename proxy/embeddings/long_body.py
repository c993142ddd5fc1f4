"""Bodies of responses with many vectors, made or written in turns with everything else on the event loop."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from proxy import turns
from proxy.cache.entry import Entry, generated_base64
from proxy.cache.memory import Memory
from proxy.http.long_response import Response
from proxy.protocol import embedding_response
from proxy.protocol.vectors import Encoding
from proxy.reservation import MemoryReservation
from proxy.steps import Steps

_PARTS_A_TURN = 32  # to write 300 kB takes a tenth of a millisecond, and so does to make as much base64


def base64_length(entries: list[Entry], end: bytes) -> int:
    """The length of a body with base64, which is known before it is made. ``end`` is what follows the last vector."""
    return embedding_response.base64_length([entry.source.base64_length for entry in entries], end)


def base64_parts(entries: list[Entry], end: bytes) -> Iterator[bytes]:
    """Its parts, each made when it is needed."""
    return embedding_response.stream_parts(generated_base64(entries), len(entries), end, are_base64=True)


def in_turns(parts: Iterable[bytes]) -> Iterator[Response]:
    """What to write of ``parts`` in each turn."""
    rest = iter(parts)
    while some := list(islice(rest, _PARTS_A_TURN)):
        yield some


async def numbers(
    memory: Memory,
    keys: Iterable[bytes],
    entries: Mapping[bytes, Entry],
    size: int,
    reservation: MemoryReservation | None,
) -> list[bytes]:
    """The vector of each key as numbers, made in turns. Until then memory of ``size`` bytes is reserved for them.
    Raises `Overloaded`."""
    if reservation is not None:
        reservation.take(size)
    try:
        return await turns.run(_numbers_in_steps(memory, keys, entries))
    finally:
        if reservation is not None:
            reservation.give_back(size)


def _numbers_in_steps(memory: Memory, keys: Iterable[bytes], entries: Mapping[bytes, Entry]) -> Steps[list[bytes]]:
    texts = []
    for key in keys:
        texts.append(memory.text(key, entries[key], Encoding.FLOAT))
        yield
    return texts
