"""The canary: checks each model in use once an interval, in one process of all that share the store."""

import logging
import secrets
from collections.abc import Callable, Iterable

from proxy.canary import measurement, state
from proxy.canary.asker import Asker, CheckFailed
from proxy.canary.epochs import Epochs
from proxy.canary.in_use import SubjectsInUse
from proxy.canary.kept import KeptValues
from proxy.canary.measurement import Measurement
from proxy.canary.report import Report
from proxy.canary.state import State
from proxy.canary.subject import Subject
from proxy.canary.verdict import Comparison, compare, first, is_settled
from proxy.errors import StoreError
from proxy.labels import CanaryVerdict
from proxy.upstream.router import Origin

_log = logging.getLogger(__name__)

TICK_S = 15.0
_MAX_NAME = 64
_TOKEN_BYTES = 16


class Canary:
    """``in_use`` learns which models to check. Keys are derived with ``epochs``."""

    def __init__(
        self,
        origins: Iterable[Origin],
        kept: KeptValues,
        in_use: SubjectsInUse,
        epochs: Epochs,
        report: Report,
        *,
        interval_s: float,
        begins_epochs: bool,
        clock: Callable[[], float],
    ) -> None:
        """With ``begins_epochs``, entries of a model whose weights have changed are not served any more."""
        self._origins = {origin.name: origin for origin in origins}
        self._kept = kept
        self.in_use = in_use
        self.epochs = epochs
        self._report = report
        self._asker = Asker(report.bill)
        self._interval_s = interval_s
        self._begins_epochs = begins_epochs
        self._clock = clock
        self._states: dict[Subject, State] = {}
        # Copies, to write a reference again if the store loses it.
        self._references: dict[tuple[Subject, int], bytes] = {}
        self._has_failed = False

    async def tick(self, _late_s: float = 0.0) -> None:
        """Check what is due, and show what any process has found."""
        subjects = self.in_use.current()
        self._states = {subject: known for subject, known in self._states.items() if subject in subjects}
        self._references = {key: value for key, value in self._references.items() if key[0] in subjects}
        try:
            for subject in subjects:
                await self._visit(subject)
            self._has_failed = False
        except StoreError as error:
            if not self._has_failed:
                _log.warning("canary: no checks while the store fails (%s: %s)", error.reason, error)
            self._has_failed = True
        self._report.show(self._states)

    async def _visit(self, subject: Subject) -> None:
        """Raises `StoreError`."""
        found = state.decode((await self._kept.read(subject.state_key)).content)
        now_s = self._clock()
        if found is not None:
            self._states[subject] = found
            if not found.is_due(now_s, self._interval_s):
                return
        token = secrets.token_bytes(_TOKEN_BYTES)
        if await self._kept.take_turn(subject.turn_key, token, self._interval_s):
            await self._check(subject, self._states.get(subject, State()))

    async def _check(self, subject: Subject, before: State) -> None:
        """Raises `StoreError`."""
        epoch = self.epochs.current(subject.digest)
        try:
            after = await self._compared(subject, epoch, before)
        except CheckFailed as failure:
            after = before.failed(failure.detail, self._clock())
        self._states[subject] = after
        self._report.checked(subject, after)
        if after.epoch > epoch:
            self._report.began_epoch(subject, after.epoch)
        await self._kept.put(subject.state_key, state.encode(after))

    async def _compared(self, subject: Subject, epoch: int, before: State) -> State:
        """Raises `CheckFailed` and `StoreError`."""
        origin = self._origins[subject.upstream]
        measured = await self._asker.measure(origin, subject)
        reference = await self._reference(subject, epoch, measured)
        if reference is None:
            return State().compared(first(measured), self._clock(), epoch=epoch)
        comparison = compare(reference, measured, known_noise=before.known_noise)
        if self._begins_epochs and comparison.is_moved:
            again = await self._asker.measure(origin, subject)
            if compare(reference, again, known_noise=before.known_noise).is_moved and is_settled(measured, again):
                epoch = await self._begin_epoch(subject, epoch, again)
        detail = _detail(reference, measured, comparison)
        return before.compared(comparison, self._clock(), epoch=epoch, detail=detail)

    async def _reference(self, subject: Subject, epoch: int, measured: Measurement) -> Measurement | None:
        """The first vectors of an epoch. None if there were none: then those of ``measured`` are kept as the first."""
        name, key = (subject, epoch), subject.reference_key(epoch)
        found = await self._kept.read(key)
        content, reference = found.content, measurement.decoded(found.content)
        if content is None or reference is None:
            content = self._references.get(name)  # the store has lost it
            reference = measurement.decoded(content)
            content = content or measurement.encode(measured)
            await self._kept.swap(key, content, found)
        self._references[name] = content
        return reference

    async def _begin_epoch(self, subject: Subject, epoch: int, measured: Measurement) -> int:
        """The epoch of the new weights, whose first vectors are ``measured``."""
        after = await self.epochs.advance(subject.digest, epoch)
        await self._kept.put_first(subject.reference_key(after), measurement.encode(measured))
        return after


def _detail(reference: Measurement, measured: Measurement, comparison: Comparison) -> str:
    """The values before and now, if a few words can say them; otherwise ""."""
    match comparison.verdict:
        case CanaryVerdict.DIMENSIONS:
            return f"{_lengths(reference)} before, {_lengths(measured)} now"
        case CanaryVerdict.OTHER_MODEL:
            return f"{_name(reference)} before, {_name(measured)} now"
    return ""


def _lengths(measured: Measurement) -> str:
    return " and ".join(map(str, sorted(measured.dimensions)))


def _name(measured: Measurement) -> str:
    return ascii(measured.model[:_MAX_NAME])
