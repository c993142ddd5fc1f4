"""What a check says of an upstream's model (pure)."""

from dataclasses import dataclass

from proxy.canary.measurement import Measurement, changed_numbers, cosine_distance
from proxy.labels import CanaryVerdict

# Cosine distances. With the same weights, other kernels, GPUs or batches stay well below 1e-4. Other weights, or
# weights in another precision, do not.
_LAST_BITS = 1e-4
# Noise is measured on few responses, so the next ones may be a little farther apart.
_NOISE_FACTOR = 2.0
# Above this it is not noise: some responses are of other weights, as when an upstream is replacing its servers.
_MAX_NOISE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``distance`` is the largest cosine distance to the reference, ``noise`` the largest that the upstream has shown
    between two responses for one text, ``changed`` the ratio of numbers that differ in any bit."""

    verdict: CanaryVerdict
    distance: float
    noise: float
    changed: float

    @property
    def plausible_noise(self) -> float:
        """``noise``, or 0 if it is so large that it is something else."""
        return self.noise if self.noise <= _MAX_NOISE else 0.0

    @property
    def is_moved(self) -> bool:
        """Whether the vectors have changed, not only the name that the upstream gives the model."""
        return self.verdict in (CanaryVerdict.DRIFTED, CanaryVerdict.DIMENSIONS) or (
            self.verdict is CanaryVerdict.OTHER_MODEL and self.distance > _excused(self.noise)
        )


def first(measured: Measurement) -> Comparison:
    """Nothing to compare with yet."""
    return Comparison(verdict=CanaryVerdict.FIRST, distance=0.0, noise=measured.noise, changed=0.0)


def compare(reference: Measurement, now: Measurement, *, known_noise: float = 0.0) -> Comparison:
    """Compare the vectors of a check with the first ones. Each vector is compared with one that was asked for in the
    same way, since the composition of a batch changes the last bits. ``known_noise`` is the largest noise of earlier
    checks."""
    pairs = list(zip(reference.vectors, now.vectors, strict=True))
    distance = max(cosine_distance(*pair) for pair in pairs)
    noise = max(known_noise, reference.noise, now.noise)
    changed = sum(changed_numbers(*pair) for pair in pairs) / sum(max(a.dimensions, b.dimensions) for a, b in pairs)
    return Comparison(
        verdict=_verdict(reference, now, distance, noise, changed), distance=distance, noise=noise, changed=changed
    )


def _verdict(reference: Measurement, now: Measurement, distance: float, noise: float, changed: float) -> CanaryVerdict:
    if now.dimensions != reference.dimensions:
        return CanaryVerdict.DIMENSIONS
    if now.model != reference.model:
        return CanaryVerdict.OTHER_MODEL
    if not changed:
        return CanaryVerdict.SAME_BITS
    if distance > _excused(noise):
        return CanaryVerdict.DRIFTED
    return CanaryVerdict.WITHIN_NOISE if distance <= _NOISE_FACTOR * noise else CanaryVerdict.LAST_BITS


def _excused(noise: float) -> float:
    """The largest distance that does not count as drift."""
    return max(_LAST_BITS, _NOISE_FACTOR * min(noise, _MAX_NOISE))


def is_settled(one: Measurement, other: Measurement) -> bool:
    """Whether two measurements are of one model. If not, the upstream may be replacing its servers just now."""
    both = compare(one, other)
    return not both.is_moved and max(one.noise, other.noise) <= _MAX_NOISE
