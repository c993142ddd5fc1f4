"""Pairs of printable texts with equal XXH3-64 and XXH3-128: why neither may identify an item.

Beyond 240 bytes XXH3 reads stripes of 64 bytes, as eight lanes of one word each. It adds each word to the neighbouring
lane, and to its own lane the product of the halves of ``word ^ secret``; stripe n of a block of 1024 bytes takes the
secret from its nth word on (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md). Where the words of two
stripes meet secrets that differ by D, the words (a, a^d^D) and (a^d, a^D) give the same two products, in the other
order; and with d & D == 0 the same sum.
"""

import random
from collections.abc import Iterator

# The default secret of XXH3, its first 17 words, which is as far as the pairs need it.
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe 7c01812cf721ad1c ded46de9839097db 7240a4a4b7b3671f cb79e64eccc0e578 825ad07dccff7221"
    "b8084674f743248e e03590e6813a264c 3c2852bb91c300cb 88d0658b1b532ea3 71644897a20df94e 3819ef46a9deacd8"
    "a8fa763fe39c343f f9dcbbc7c70b4f1d 8a51e04bcdb45931 c89f7ec9d9787364 eac5ac8334d3ebc3"
)
_WORD, _STRIPE, _BLOCK = 8, 64, 1024
# The only two words of the secret that differ by no byte's top bit, so that ASCII stays ASCII.
_FIRST, _SECOND = 5, 14
_D = bytes(a ^ b for a, b in zip(_SECRET[_FIRST * _WORD :][:_WORD], _SECRET[_SECOND * _WORD :][:_WORD], strict=True))
_PRINTABLE = range(0x20, 0x7F)
# Per byte of D: the pairs (a, d) that keep all four texts printable.
_CHOICES = [
    [
        (a, d)
        for a in _PRINTABLE
        for d in range(0x80)
        if not d & own and {a, a ^ d, a ^ own, a ^ d ^ own} <= set(_PRINTABLE)
    ]
    for own in _D
]


def pairs(count: int, *, seed: int) -> Iterator[tuple[str, str]]:
    """So many pairs of different ASCII texts, equally long, with the same unseeded XXH3 digests of both lengths."""
    rng = random.Random(seed)
    while count:
        filling = bytes(rng.choices(_PRINTABLE, k=_BLOCK + rng.randint(1, 500)))
        lane = rng.randint(0, _FIRST)  # stripes _FIRST - lane and _SECOND - lane
        a, d = (bytes(column) for column in zip(*map(rng.choice, _CHOICES), strict=True))
        if any(d):
            first = _with(filling, lane, a, _xor(_xor(a, d), _D))
            second = _with(filling, lane, _xor(a, d), _xor(a, _D))
            yield first.decode("ascii"), second.decode("ascii")
            count -= 1


def _with(filling: bytes, lane: int, first: bytes, second: bytes) -> bytes:
    text = bytearray(filling)
    for word, place in ((first, _FIRST), (second, _SECOND)):
        start = (place - lane) * _STRIPE + lane * _WORD
        text[start : start + _WORD] = word
    return bytes(text)


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))
