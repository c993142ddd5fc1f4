"""A check in the words of the log: every verdict has a sentence, and no number is missing from it."""

import pytest

from proxy.canary.sentence import sentence_of
from proxy.canary.state import State
from proxy.labels import CANARY_ALARMS, CanaryVerdict

SEEN = State(verdict=CanaryVerdict.DRIFTED, distance=0.25, noise=2e-9, changed=0.5, detail="64 before, 32 now")


@pytest.mark.parametrize("verdict", [verdict for verdict in CanaryVerdict if verdict is not CanaryVerdict.FAILED])
def test_every_verdict_has_a_sentence_and_alarms_say_where_to_read_on(verdict: CanaryVerdict) -> None:
    state = State(verdict=verdict, distance=0.25, noise=2e-9, changed=0.5, detail="64 before, 32 now")
    said = sentence_of(state)
    assert "{" not in said
    assert (said.startswith("DRIFTED, ") and said.endswith("; see docs/drift.md")) is (verdict in CANARY_ALARMS)


def test_the_numbers_are_those_of_the_check() -> None:
    assert sentence_of(SEEN) == (
        "DRIFTED, other weights: cosine 0.750000000 to the first vectors, 50.0% of the numbers changed,"
        " the upstream's own noise is 2.0e-09; see docs/drift.md"
    )


def test_a_failed_check_says_why_and_how_often() -> None:
    failed = SEEN.failed("timeout", 1.0).failed("status 500", 2.0)
    assert sentence_of(failed) == "the check failed: status 500 (2 in a row)"
