"""What operators see of the checks: metrics, and a log line for each check of this process."""

import logging
from collections.abc import Callable, Mapping
from operator import attrgetter

from prometheus_client import Gauge

from proxy.canary.sentence import sentence_of
from proxy.canary.state import State
from proxy.canary.subject import Subject
from proxy.labels import CANARY_ALARMS, CanaryVerdict
from proxy.printable import printable
from proxy.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_Labels = tuple[str, str]  # upstream, model
_NO_NAME = "-"
_MAX_NAME = 64


class Report:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._gauges: tuple[tuple[Gauge, Callable[[State], float]], ...] = (
            (metrics.canary_distance, attrgetter("distance")),
            (metrics.canary_noise, attrgetter("noise")),
            (metrics.canary_changed, attrgetter("changed")),
            (metrics.canary_epoch, attrgetter("epoch")),
            (metrics.canary_failures, attrgetter("failures")),
            (metrics.canary_measured_at, attrgetter("measured_at_s")),
        )
        self._shown: set[_Labels] = set()

    def labels_of(self, subject: Subject) -> _Labels:
        return subject.upstream, self._metrics.label_of(subject.name) or _NO_NAME

    def bill(self, subject: Subject, tokens: int) -> None:
        self._metrics.canary_tokens.labels(*self.labels_of(subject)).inc(tokens)

    def checked(self, subject: Subject, state: State) -> None:
        self._metrics.canary_checks.labels(*self.labels_of(subject), state.latest.value).inc()
        level = logging.WARNING if state.latest in {*CANARY_ALARMS, CanaryVerdict.FAILED} else logging.INFO
        upstream, model = self.labels_of(subject)
        _log.log(level, "canary: %s of %s: %s", _shown(model), upstream, sentence_of(state))

    def began_epoch(self, subject: Subject, epoch: int) -> None:
        upstream, model = self.labels_of(subject)
        _log.warning(
            "canary: %s of %s: epoch %d begins; entries of earlier epochs are not served any more",
            _shown(model),
            upstream,
            epoch,
        )

    def show(self, states: Mapping[Subject, State]) -> None:
        """Set the gauges by what is known now. Where two subjects have the same labels, the worse counts."""
        worst: dict[_Labels, State] = {}
        for subject, state in states.items():
            labels = self.labels_of(subject)
            if labels not in worst or _badness(state) > _badness(worst[labels]):
                worst[labels] = state
        for gone in self._shown - worst.keys():
            self._remove(gone)
        for labels, state in worst.items():
            self._set(labels, state)
        self._shown = set(worst)

    def _set(self, labels: _Labels, state: State) -> None:
        for verdict in CanaryVerdict:
            self._metrics.canary_verdict.labels(*labels, verdict.value).set(verdict in (state.verdict, state.latest))
        for gauge, value_of in self._gauges:
            gauge.labels(*labels).set(value_of(state))

    def _remove(self, labels: _Labels) -> None:
        for verdict in CanaryVerdict:
            self._metrics.canary_verdict.remove(*labels, verdict.value)
        for gauge, _ in self._gauges:
            gauge.remove(*labels)


def _badness(state: State) -> tuple[int, float]:
    return list(CanaryVerdict).index(state.verdict), state.distance


def _shown(name: str) -> str:
    """A model's name for the log: clients choose it."""
    return printable(name[:_MAX_NAME])
