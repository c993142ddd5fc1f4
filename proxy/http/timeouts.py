"""How long a connection may wait for its client (pure). Times are the caller's, in seconds.

aiohttp waits forever for a head, so a client that opens connections and sends nothing could occupy all of them.
"""

from enum import Enum, auto

# From the connection, or the first byte of a request, to the end of its head.
HEAD_TIMEOUT_S = 30.0
# Between two requests of one connection.
IDLE_TIMEOUT_S = 75.0
# How long a connection that is to be closed discards what its client still sends (`proxy.http.lingering`).
LINGER_S = 5.0


class Overdue(Enum):
    HEAD = auto()
    NEXT_REQUEST = auto()


class ConnectionTimer:
    """Measures how long a client takes for a head or for its next request, or how long the connection has lingered."""

    __slots__ = ("_since_s", "awaits_head")

    def __init__(self, now_s: float) -> None:
        self.awaits_head = True  # the connection is new, or the first bytes of a request have arrived
        self._since_s = now_s

    def head_began(self, now_s: float) -> None:
        self.awaits_head, self._since_s = True, now_s

    def request_ended(self, now_s: float) -> None:
        self.awaits_head, self._since_s = False, now_s

    def linger_began(self, now_s: float) -> None:
        self._since_s = now_s

    def postpone(self, now_s: float) -> None:
        """The client still reads the last response, so the connection is not idle. The time limit of a head stays."""
        if not self.awaits_head:
            self._since_s = now_s

    def overdue(self, now_s: float) -> Overdue | None:
        """What should have arrived by now."""
        waited_s = now_s - self._since_s
        if self.awaits_head and waited_s > HEAD_TIMEOUT_S:
            return Overdue.HEAD
        return Overdue.NEXT_REQUEST if waited_s > IDLE_TIMEOUT_S else None

    def is_linger_over(self, now_s: float) -> bool:
        return now_s - self._since_s > LINGER_S
