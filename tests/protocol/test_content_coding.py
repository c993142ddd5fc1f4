import gzip
import zlib
from collections.abc import Callable

import pytest

from proxy.protocol import content_coding
from proxy.protocol.content_coding import InvalidCoding

PLAIN = bytes(range(256)) * 4096


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_both_codings_are_decoded(compress: Callable[[bytes], bytes]) -> None:
    body = compress(PLAIN)
    assert content_coding.decode(body, max_bytes=len(PLAIN) + 1) == PLAIN
    assert b"".join(content_coding.decode_in_pieces(body)) == PLAIN


@pytest.mark.parametrize("body", [b"", b"plain", gzip.compress(PLAIN)[:-1], zlib.compress(PLAIN)[2:-4]], ids=len)
def test_other_bytes_are_invalid(body: bytes) -> None:
    with pytest.raises(InvalidCoding):
        content_coding.decode(body, max_bytes=len(PLAIN) + 1)
    with pytest.raises(InvalidCoding):
        list(content_coding.decode_in_pieces(body))


def test_data_after_the_end_is_invalid_in_pieces() -> None:
    with pytest.raises(InvalidCoding):
        list(content_coding.decode_in_pieces(gzip.compress(PLAIN) + b"x"))


def test_more_than_the_limit_is_invalid() -> None:
    with pytest.raises(InvalidCoding):
        content_coding.decode(gzip.compress(PLAIN), max_bytes=len(PLAIN) - 1)
