"""A check in the words of the log (pure)."""

from proxy.canary.state import State
from proxy.labels import CanaryVerdict

_NUMBERS = (
    "cosine {cosine:.9f} to the first vectors, {changed:.1%} of the numbers changed,"
    " the upstream's own noise is {noise:.1e}"
)
_SENTENCES = {
    CanaryVerdict.FIRST: "first vectors kept for comparison; the upstream's own noise is {noise:.1e}",
    CanaryVerdict.SAME_BITS: "the same bits as the first vectors",
    CanaryVerdict.WITHIN_NOISE: f"within the upstream's noise: {_NUMBERS}",
    CanaryVerdict.LAST_BITS: f"the last bits moved: {_NUMBERS}",
    CanaryVerdict.DRIFTED: f"DRIFTED, other weights: {_NUMBERS}; see docs/drift.md",
    CanaryVerdict.DIMENSIONS: "DRIFTED, vectors of another length: {detail}; see docs/drift.md",
    CanaryVerdict.OTHER_MODEL: f"DRIFTED, another model is named: {{detail}}; {_NUMBERS}; see docs/drift.md",
    CanaryVerdict.FAILED: "the check failed: {failure} ({failures} in a row)",
}


def sentence_of(state: State) -> str:
    return _SENTENCES[state.latest].format(
        cosine=1 - state.distance,
        changed=state.changed,
        noise=state.noise,
        detail=state.detail,
        failure=state.failure,
        failures=state.failures,
    )
