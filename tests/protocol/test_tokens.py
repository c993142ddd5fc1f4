from hypothesis import given
from hypothesis import strategies as st

from proxy.protocol import tokens


@given(st.integers(0, 10**6), st.lists(st.integers(1, 10**5), min_size=1, max_size=50))
def test_shared_tokens_add_up_and_follow_the_weights(total: int, weights: list[int]) -> None:
    shares = tokens.share_tokens(total, weights)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * weight / sum(weights)) < 1


def test_typical_tokens_are_estimated_by_bytes() -> None:
    assert [tokens.typical_tokens(text) for text in ("", "a", "abcd", "abcde", "日本語")] == [1, 1, 1, 2, 3]
    assert tokens.typical_tokens({"image": "abcd"}) == 4
