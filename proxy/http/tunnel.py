"""A connection that speaks another protocol from now on."""

from typing import Protocol


class Tunnel(Protocol):
    """Takes over a connection that is upgraded. aiohttp calls it like its own parser of WebSockets."""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Bytes from the client. Returns (False, b""), as aiohttp's parsers do: not at the end, nothing left over."""
        ...

    def feed_eof(self) -> None:
        """The client has closed its side."""
        ...

    def go_away(self) -> None:
        """The connection is about to be closed, or is lost."""
        ...
