"""What one line of a file says (pure)."""

from typing import Any, NamedTuple

DEFAULT_TARGET = "/v1/embeddings"


class Call(NamedTuple):
    """A request to an embeddings API, as a log has it."""

    fields: dict[str, Any]  # of the body
    body: bytes | None = None  # as it was sent; None: known only as these fields
    headers: tuple[tuple[str, str], ...] = ()
    target: str = DEFAULT_TARGET
    at_s: float | None = None  # Unix time


class Text(NamedTuple):
    """One text of a corpus."""

    text: str


class Unreadable(Exception):
    """A line that is neither a text nor a request. The message is a phrase that many lines share."""


class Unrelated(Exception):
    """A line of something else, as a chat request or another program's log line. The message says what it is."""
