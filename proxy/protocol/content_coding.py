"""The content codings gzip and deflate of message bodies (RFC 9110 §8.4.1) (pure)."""

import zlib
from collections.abc import Iterator

CODINGS = frozenset({"gzip", "deflate"})
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32  # by its header
_STEP_BYTES, _PIECE_BYTES = 4 * 1024, 64 * 1024  # of compressed input, and of output


# JSON never compresses to a hundredth of its size. A body that seems to is a decompression bomb.
_MAX_RATIO, _LEAST_BOUND_BYTES = 100, 1024 * 1024


class InvalidCoding(ValueError):
    """A body that is not of its content coding."""


def most_bytes(body: bytes, max_bytes: int) -> int:
    """The largest size that the decompressed ``body`` may have, where any body may have ``max_bytes``."""
    return min(max_bytes, max(_LEAST_BOUND_BYTES, _MAX_RATIO * len(body)))


def decode(body: bytes, *, max_bytes: int) -> bytes:
    """The decompressed body. Raises `InvalidCoding`, also if it has more than ``max_bytes``."""
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        plain = inflater.decompress(body, max_bytes)
    except zlib.error:
        raise InvalidCoding from None
    if not inflater.eof:
        raise InvalidCoding
    return plain


def decode_in_pieces(body: bytes) -> Iterator[bytes]:
    """The decompressed body in pieces. Raises `InvalidCoding`, also for data after its end."""
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    start = 0
    try:
        while not inflater.eof and start < len(body):
            compressed = body[start : start + _STEP_BYTES]
            start += _STEP_BYTES
            # One step of input may give more than one piece of output.
            while piece := inflater.decompress(compressed, _PIECE_BYTES):
                yield piece
                compressed = inflater.unconsumed_tail
    except zlib.error:
        raise InvalidCoding from None
    if not inflater.eof or inflater.unused_data or start < len(body):
        raise InvalidCoding
