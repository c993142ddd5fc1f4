"""Why a request is not cached (pure)."""


class Bypass(Exception):
    """The proxy can't be certain what a request means: it is relayed unchanged, and nothing is stored.

    ``reason`` is one of a few fixed words, fit for a metric label. ``field`` is the name, as the client wrote it, of
    the field that the reason is about.
    """

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
