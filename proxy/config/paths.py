"""Paths of files as operators write them (pure). Nothing here opens a file."""

from pathlib import Path

from proxy.errors import ConfigError
from proxy.upstream import egress


def parse_file(text: str) -> Path | None:
    """A path, with ``~`` for the user's home folder; None for ``none``. Raises `ConfigError`."""
    if text.strip().lower() == egress.NONE:
        return None
    path = expanded(text) if text.strip() else None
    if path is None:
        raise ConfigError(f"{text!r} is not the path of a file")
    return path


def expanded(text: str) -> Path | None:
    """None: no file can have this path."""
    if "\0" in text:
        return None
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ of a user that does not exist
        return None
