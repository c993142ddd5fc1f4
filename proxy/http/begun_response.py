"""A response to a request that may still be parsed."""

from typing import Protocol


class BegunResponse(Protocol):
    """A response under way to a request that was not parsed. To begin again would have costs, as a second call upstream
    has. So if the request has to be parsed after all, its handler takes this (`Connection.take_begun`)."""

    def hand_over(self) -> None:
        """The parser gets the request: its handler writes the response, and nothing else does. May be repeated."""
        ...

    def abandon(self) -> None:
        """The connection is lost, and no handler has taken this."""
        ...
