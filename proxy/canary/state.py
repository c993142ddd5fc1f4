"""What the latest check of a model said, as all processes share it (pure)."""

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from proxy.canary.verdict import Comparison
from proxy.labels import CanaryVerdict

# A failed check is repeated sooner: usually a rate limit or an outage has passed by then.
RETRY_S = 900.0


class State(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``checked_at_s`` is Unix time, of the latest check, failed or not. ``verdict`` and the numbers are those of the
    latest check that got vectors: a check that fails does not end an alarm."""

    checked_at_s: float = 0.0
    measured_at_s: float = 0.0  # Unix time of the latest check that got vectors
    verdict: CanaryVerdict = CanaryVerdict.FAILED
    detail: str = ""  # the values before and now
    failures: int = 0  # consecutive, since then
    failure: str = ""  # why the latest check failed
    distance: float = 0.0
    noise: float = 0.0
    known_noise: float = 0.0  # the largest `plausible_noise` of all checks
    changed: float = 0.0
    epoch: int = 0

    @property
    def latest(self) -> CanaryVerdict:
        """What the latest check said."""
        return CanaryVerdict.FAILED if self.failures else self.verdict

    def is_due(self, now_s: float, interval_s: float) -> bool:
        """Whether it is time for a check. A time from a clock that is far ahead, of another machine, is ignored."""
        wait_s = min(interval_s, RETRY_S) if self.failures else interval_s
        return not -wait_s < now_s - self.checked_at_s < wait_s

    def failed(self, failure: str, now_s: float) -> "State":
        return replace(self, checked_at_s=now_s, failures=self.failures + 1, failure=failure)

    def compared(self, comparison: Comparison, now_s: float, *, epoch: int, detail: str = "") -> "State":
        return State(
            checked_at_s=now_s,
            measured_at_s=now_s,
            verdict=comparison.verdict,
            detail=detail,
            distance=comparison.distance,
            noise=comparison.noise,
            known_noise=max(self.known_noise, comparison.plausible_noise),
            changed=comparison.changed,
            epoch=epoch,
        )


def encode(state: State) -> bytes:
    return msgspec.msgpack.encode(state)


def decode(stored: bytes | None) -> State | None:
    """None for anything that `encode` did not write, such as a value of another version."""
    try:
        return None if stored is None else msgspec.msgpack.decode(stored, type=State)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
