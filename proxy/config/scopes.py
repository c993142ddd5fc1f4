"""Scopes as operators name them (pure)."""

from proxy.errors import ConfigError
from proxy.protocol.records import SCOPE_BYTES


def parse_scope(text: str) -> bytes:
    """The fingerprint of a scope. Raises `ConfigError`."""
    try:
        scope = bytes.fromhex(text)
    except ValueError:
        scope = b""
    if len(scope) != SCOPE_BYTES:
        raise ConfigError(
            f"{text!r} is not a scope; accepted: {2 * SCOPE_BYTES} hexadecimal digits, as of cache info --by-scope"
        )
    return scope
