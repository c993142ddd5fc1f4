"""A process that the supervisor keeps running: when to start it again after it has ended."""

import math
from collections.abc import Callable
from dataclasses import dataclass

REFUSED = 2  # the exit status of a process that can't do what its settings require
# If a process ends sooner than `_SHORT_LIFE_S`, its next start waits. The pause doubles up to `LONGEST_PAUSE_S`.
_SHORT_LIFE_S, _FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 0.2, 5.0


@dataclass(slots=True)
class Child:
    name: str
    run: Callable[[], int]  # in the child; returns the exit status
    refuse_clients: Callable[[], object]  # until it runs again, its connections are refused and do not wait for it
    pid: int = 0  # 0: it is not running
    started_s: float = 0.0
    due_s: float = math.inf  # when to start it, if it is not running
    _pause_s: float = 0.0

    def is_due(self, now_s: float) -> bool:
        return not self.pid and self.due_s <= now_s

    def schedule_restart(self, exit_code: int, now_s: float) -> None:
        if now_s - self.started_s >= _SHORT_LIFE_S:
            self._pause_s = 0.0
        if exit_code == REFUSED:  # a file named in its settings became unusable; it may be repaired
            self._pause_s = LONGEST_PAUSE_S
            self.refuse_clients()
        self.due_s = now_s + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * self._pause_s))
