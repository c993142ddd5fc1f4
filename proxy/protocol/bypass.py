"""Why a request is not cached (pure)."""

from proxy.labels import BypassReason


class Bypass(Exception):
    """The proxy can't be certain what a request means: it is relayed unchanged, and nothing is stored.

    ``field`` is the name, as the client wrote it, of the field that ``reason`` is about.
    """

    def __init__(self, reason: BypassReason, field: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
