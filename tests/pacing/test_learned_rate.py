"""A limit that refusals teach, as long as it may be one."""

import math

from proxy.pacing.learned_rate import LearnedRate


def test_a_rate_that_no_refusal_lowers_any_more_is_forgotten() -> None:
    rate, highest = LearnedRate(), 0.0
    rate.accepted = 40.0
    rate.learn(10.0, calls=40, unit=1)
    assert 3 < rate.per_s < 4
    accepted = 0
    while rate.is_learned:
        accepted += 1
        rate.grow(max(1.0, accepted / 100), accepted / 10, unit=1)
        highest = max(highest, rate.per_s if rate.is_learned else 0.0)
    assert 5_000 < highest <= 10_000
    assert (rate.refused_at, rate.doubt) == (math.inf, 0.0)
    rate.take(1, accepted / 10)
    assert rate.ready_at_s <= accepted / 10


def test_a_rate_of_items_is_forgotten_by_its_calls() -> None:
    rate = LearnedRate(per_s=640_000.0, refused_at=640_000.0)
    rate.grow(10_000.0, 1.0, unit=64)
    assert not rate.is_learned
