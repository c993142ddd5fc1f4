"""What a connection becomes after a 101: another protocol speaks on it from then on."""

from typing import Protocol


class UpgradeHandler(Protocol):
    """Gets all bytes of an upgraded connection. aiohttp calls it like its own parser of WebSockets."""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Bytes from the client. Returns (False, b""), as aiohttp's parsers do: not at the end, nothing left over."""
        ...

    def feed_eof(self) -> None:
        """The client has closed its side."""
        ...

    def go_away(self) -> None:
        """The connection is about to be closed, or is lost."""
        ...
