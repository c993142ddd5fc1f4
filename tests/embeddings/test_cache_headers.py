"""The header fields that say what the cache did, also beside those of other caches."""

from multidict import CIMultiDict

from proxy.embeddings.cache_headers import add_cache_headers, detail_of
from proxy.protocol.response_spec import ResponseSpec
from proxy.protocol.vectors import Encoding


def test_cache_status_is_appended_and_the_proxys_own_fields_are_replaced() -> None:
    given = CIMultiDict(
        [
            ("X-Cache", "Hit from elsewhere"), ("x-cache", "MISS"), ("X-Cache-Saved-Tokens", "9"),
            ("X-Cache-Hits", "3"), ("Cache-Status", "edge; hit"), ("Age", "3"),
        ]
    )  # fmt: skip
    add_cache_headers(given, "MISS", "fwd=miss", saved_tokens=2)
    assert given.getall("X-Cache") == ["MISS"]
    assert given.getall("X-Cache-Saved-Tokens") == ["2"]
    assert "X-Cache-Hits" not in given
    assert given.getall("Cache-Status") == ["edge; hit", "embedding-proxy; fwd=miss"]
    assert given["Age"] == "3"


def test_only_a_request_that_is_keyed_as_a_whole_has_a_detail() -> None:
    assert detail_of(ResponseSpec("m", Encoding.FLOAT, (b"k",), is_keyed_whole=True)) == "whole-body"
    assert detail_of(ResponseSpec("m", Encoding.FLOAT, (b"k",), is_keyed_whole=False)) == ""
