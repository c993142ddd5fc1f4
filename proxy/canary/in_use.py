"""The models that clients ask for. Only these are checked."""

import logging
from collections.abc import Callable

from proxy.canary.subject import Subject

_log = logging.getLogger(__name__)

# Each model costs tokens, and some upstreams accept any model name.
MAX_SUBJECTS = 16
# If nobody has asked for a model for this long, it is not checked.
IN_USE_S = 7 * 24 * 3600.0
# If no place is free, a new model takes the place of one that had no request for this long.
_YIELDS_AFTER_S = 24 * 3600.0
_MAX_CHARS = 1024


class SubjectsInUse:
    """Learns of models from requests that got vectors. In memory only: after a restart it learns them again."""

    def __init__(self, items: Callable[[str | None], float], *, clock: Callable[[], float]) -> None:
        """``items`` counts the items that clients got of a model, by its name; 0 for one without a label of its own.
        Repeated requests are counted there, but not noted here, since they are not parsed."""
        self._items = items
        self._clock = clock
        self._seen_at_s: dict[Subject, float] = {}
        self._counted: dict[Subject, float] = {}
        self._has_warned = False

    def note(self, subject: Subject) -> None:
        """A client got vectors of ``subject``."""
        if subject not in self._seen_at_s and not self._has_room(subject):
            return
        self._seen_at_s[subject] = self._clock()

    def current(self) -> list[Subject]:
        """The subjects in use, in the order in which they came."""
        now_s = self._clock()
        for subject, seen_at_s in list(self._seen_at_s.items()):
            counted = self._items(subject.name)
            if counted > self._counted.get(subject, counted):
                self._seen_at_s[subject] = now_s
            elif now_s - seen_at_s > IN_USE_S:
                self._forget(subject)
                continue
            self._counted[subject] = counted
        return list(self._seen_at_s)

    def _has_room(self, subject: Subject) -> bool:
        if len(subject.url) + len(subject.model or "") > _MAX_CHARS:
            return False
        if len(self._seen_at_s) < MAX_SUBJECTS:
            return True
        oldest = min(self._seen_at_s, key=self._seen_at_s.__getitem__)
        if self._clock() - self._seen_at_s[oldest] > _YIELDS_AFTER_S:
            self._forget(oldest)
            return True
        if not self._has_warned:
            self._has_warned = True
            _log.warning("canary: %d models are in use; further models are not checked (logged once)", MAX_SUBJECTS)
        return False

    def _forget(self, subject: Subject) -> None:
        del self._seen_at_s[subject]
        self._counted.pop(subject, None)
