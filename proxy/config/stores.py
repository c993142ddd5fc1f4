"""The store and its size as operators write them (pure). Nothing here opens a store."""

from proxy.cache.redis import redis_url
from proxy.config.paths import expanded
from proxy.config.quantities import parse_size
from proxy.config.settings import MIB, StoreSetting
from proxy.errors import ConfigError
from proxy.upstream import base_urls

_MIN_STORE_BYTES = 16 * MIB
_ACCEPTED = (
    "accepted: memory:, sqlite:////absolute/path, redis://host:port/db, redis+cluster://host:port,host:port,"
    " redis+sentinel://host:port,host:port/master/db, rediss… for TLS, unix:///path/to/socket"
)


def parse_store(text: str) -> StoreSetting:
    """``memory:``, ``sqlite:///path`` or a Redis URL. Raises `ConfigError`."""
    scheme, colon, rest = text.strip().partition(":")
    if scheme == "memory" and colon and not rest:
        return StoreSetting()
    if scheme == "sqlite" and rest.startswith("///") and len(rest) > len("///"):
        # As in SQLAlchemy: three slashes before a relative path, four before an absolute one.
        path = expanded(rest.removeprefix("///"))
        if path is not None:
            return StoreSetting(path=path)
    if _is_redis_url(text.strip()):
        return StoreSetting(url=text.strip())
    raise ConfigError(f"{base_urls.redacted(text)!r} is not a store; {_ACCEPTED}")


def parse_store_limit(text: str) -> int:
    """Bytes. Raises `ConfigError`, also for a size that is too small for SQLite's pages and log."""
    size = parse_size(text)
    if size < _MIN_STORE_BYTES:
        raise ConfigError(f"{text!r} is too small; accepted: {_MIN_STORE_BYTES // MIB}MiB or more")
    return size


def _is_redis_url(url: str) -> bool:
    try:
        redis_url.parse(url)
    except ValueError:
        return False
    return True
