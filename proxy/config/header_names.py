"""Names of header fields as operators write them (pure)."""

import re

from proxy.errors import ConfigError
from proxy.protocol import header_kinds

_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 §5.6.2


def parse_header_names(text: str) -> frozenset[str]:
    """``X-Route, X-User`` as names in lower case. Raises `ConfigError`."""
    names = frozenset(name.strip().lower() for name in text.split(","))
    invalid = sorted(name for name in names if not _HEADER_NAME.fullmatch(name))
    if invalid:
        raise ConfigError(f"{invalid[0]!r} is not the name of a header field; accepted: names as X-Route, X-User")
    return names


def parse_neutral_headers(text: str) -> frozenset[str]:
    """``X-Session, X-Plan`` as names in lower case. Raises `ConfigError`, also for a field that can't be neutral."""
    names = parse_header_names(text)
    for name in sorted(names):
        if (why := header_kinds.why_not_neutral(name)) is not None:
            raise ConfigError(f"{name!r} {why}")
    return names
