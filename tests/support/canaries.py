"""Canaries of several processes on one store, by a clock that tests set."""

from collections.abc import Sequence
from typing import Any

from proxy.cache.store import Store
from proxy.canary.canary import Canary
from proxy.canary.epochs import Epochs
from proxy.canary.in_use import SubjectsInUse
from proxy.canary.kept import KeptValues
from proxy.canary.report import Report
from proxy.canary.subject import Subject
from proxy.telemetry.metrics import Metrics
from proxy.upstream.router import Origin
from tests.support.dict_store import Clock
from tests.support.drifting import URL

HOUR_S = 3600.0
SUBJECT = Subject("up", URL, "m", "m")


class Process:
    """One process that has a canary."""

    def __init__(
        self,
        store: Store,
        origin: Origin,
        clock: Clock,
        *,
        interval_s: float = 6 * HOUR_S,
        begins_epochs: bool = False,
        subjects: Sequence[Subject] = (SUBJECT,),
        record_key: Any = None,
    ) -> None:
        self.metrics = Metrics()
        self.metrics.admit_model("m")
        kept = KeptValues(store, record_key=record_key, clock=clock)
        self.epochs = Epochs(kept, must_agree=begins_epochs)
        self.canary = Canary(
            [origin],
            kept,
            SubjectsInUse(self.metrics.items_of_model, clock=clock),
            self.epochs,
            Report(self.metrics),
            interval_s=interval_s,
            begins_epochs=begins_epochs,
            clock=clock,
        )
        for subject in subjects:
            self.canary.in_use.note(subject)

    async def tick(self) -> str:
        """Let it check what is due. Returns the verdicts that its metrics have now."""
        await self.canary.tick()
        return self.verdict

    @property
    def verdict(self) -> str:
        return " ".join(sorted(labels["verdict"] for labels, value in self.samples("canary_verdict") if value))

    def value(self, name: str) -> float:
        """The only sample of a metric."""
        ((_, value),) = self.samples(name)
        return value

    def counted(self, name: str, label: str) -> dict[str, float]:
        return {labels[label]: value for labels, value in self.samples(name) if value}

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        return [
            (sample.labels, sample.value)
            for family in self.metrics.families()
            for sample in family.samples
            if sample.name == f"embedding_proxy_{name}"
        ]
