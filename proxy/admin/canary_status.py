"""What the canary found, from its metrics (pure)."""

from dataclasses import dataclass

from proxy.admin.samples import Samples
from proxy.labels import CanaryVerdict
from proxy.telemetry import definitions

_BY_MODEL = ("upstream", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryStatus:
    """The latest check of one model. The numbers are those of the latest check that got vectors."""

    upstream: str
    model: str  # chosen by a client: show it as text, never as markup
    verdict: str  # the worst that is known
    distance: float
    noise: float
    changed: float
    epoch: int
    failures: int
    measured_at_s: float  # Unix time; 0: never


def canary_of(samples: Samples) -> list[CanaryStatus]:
    """The models that the canary checks, by upstream and name; none without a canary."""
    verdicts: dict[tuple[str, ...], list[str]] = {}
    for (upstream, model, verdict), value in samples.gauges_by(
        definitions.CANARY_VERDICT, *_BY_MODEL, "verdict"
    ).items():
        if value:
            verdicts.setdefault((upstream, model), []).append(verdict)
    found = {
        name: samples.gauges_by(definition, *_BY_MODEL)
        for name, definition in (
            ("distance", definitions.CANARY_DISTANCE),
            ("noise", definitions.CANARY_NOISE),
            ("changed", definitions.CANARY_CHANGED),
            ("epoch", definitions.CANARY_EPOCH),
            ("failures", definitions.CANARY_FAILURES),
            ("measured_at_s", definitions.CANARY_MEASURED_AT),
        )
    }
    order = [verdict.value for verdict in CanaryVerdict]
    return [
        CanaryStatus(
            upstream=upstream,
            model=model,
            verdict=max(verdicts[upstream, model], key=order.index),
            distance=found["distance"][upstream, model],
            noise=found["noise"][upstream, model],
            changed=found["changed"][upstream, model],
            epoch=int(found["epoch"][upstream, model]),
            failures=int(found["failures"][upstream, model]),
            measured_at_s=found["measured_at_s"][upstream, model],
        )
        for upstream, model in sorted(verdicts)
    ]
