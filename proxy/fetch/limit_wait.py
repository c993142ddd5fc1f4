"""A client request's wait for its upstream's rate limit (pure)."""

from msgspec import Struct


class LimitWait(Struct, eq=False):
    """How urgent a request is, how long its client waits for the limit, and how long it has waited so far.

    Times are those of the event loop. Without a deadline the request never waits: refusals are relayed.
    """

    urgency: int = 0  # 0 to 7; the least goes first
    began_s: float = 0.0
    deadline_s: float = 0.0
    held_s: float = 0.0  # how long it has waited
    is_held: bool = False  # it waits now
    _held_since_s: float = 0.0

    def hold(self, now_s: float) -> None:
        """It waits from now on."""
        self.is_held, self._held_since_s = True, now_s

    def release(self, now_s: float) -> None:
        self.is_held = False
        self.held_s += now_s - self._held_since_s
