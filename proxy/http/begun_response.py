"""A response to a request that may still be parsed."""

from typing import Protocol


class BegunResponse(Protocol):
    """A response under way to a request that was not parsed. Starting it again could send, and bill, a second upstream
    call. So if the request must be parsed after all, its handler takes this object (`Connection.take_begun`)."""

    def hand_over(self) -> None:
        """The parser gets the request, so only its handler may write the response. May be called more than once."""
        ...

    def abandon(self) -> None:
        """The connection is lost before a handler took this object."""
        ...
