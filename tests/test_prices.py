"""The first pattern that matches a model's name is its price."""

from proxy.prices import cost_of, price_of

PRICES = {"other*": 1.0, "text-*": 0.02, "*": 5.0}


def test_the_first_pattern_that_matches_counts() -> None:
    assert price_of("text-embedding-3-small", PRICES) == 0.02
    assert price_of("m", PRICES) == 5.0
    assert price_of(None, PRICES) == 5.0
    assert price_of("m", {}) is None


def test_prices_are_for_a_million_tokens() -> None:
    assert cost_of(500_000, "text-embedding-3-small", PRICES) == 0.01
    assert cost_of(500_000, "m", {}) is None
