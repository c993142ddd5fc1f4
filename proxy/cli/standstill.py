"""What a long command waits for, and since when, as text (pure)."""

from datetime import UTC, datetime

_SILENCE_S = 10.0  # until then, a command without progress is only slow
_REPORT_EVERY_S = 60.0
_NO_RESPONSE = "no response yet; the proxy may be waiting for the upstream's rate limit"


class Standstill:
    """Times are Unix times in seconds."""

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._reason: str | None = None
        self._report_at_s = now_s + _SILENCE_S

    def end(self, now_s: float) -> None:
        """There is progress."""
        self._since_s, self._reason, self._report_at_s = now_s, None, now_s + _SILENCE_S

    def because_of(self, reason: str) -> None:
        """What has to be waited for is known now."""
        self._reason = reason

    def text(self, now_s: float) -> str | None:
        """None if there is progress."""
        waited_s = now_s - self._since_s
        if self._reason is None and waited_s < _SILENCE_S:
            return None
        since = datetime.fromtimestamp(self._since_s, UTC)
        return f"waiting since {since:%H:%M:%S} UTC ({waited_s:.0f} s): {self._reason or _NO_RESPONSE}"

    def report(self, now_s: float) -> str | None:
        """`text` if it is time for a line of it: after ten seconds, and then once a minute."""
        if now_s < self._report_at_s:
            return None
        self._report_at_s = now_s + _REPORT_EVERY_S
        return self.text(now_s)
