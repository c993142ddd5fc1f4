"""The names under which a Redis has records, leases and the log of replaced records (pure)."""

from collections.abc import Iterable

from proxy.protocol.keys import KEY_BYTES

_RECORD_PREFIX = "embedding:"
_LEASE_PREFIX = "embedding-lease:"
_COUNTER_PREFIX = "embedding-budget:"
CHANGES_NAME = "embedding-changes"
RECORDS_PATTERN = f"{_RECORD_PREFIX}*"


def record_name(key: bytes) -> str:
    return _RECORD_PREFIX + key.hex()


def record_names(keys: Iterable[bytes]) -> list[str]:
    return [_RECORD_PREFIX + digits for digits in map(bytes.hex, keys)]


def record_key(name: bytes) -> bytes | None:
    """The key whose record has this name; None if it is the name of something else."""
    text = name.removeprefix(_RECORD_PREFIX.encode())
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES and record_name(key).encode() == name else None


def counter_name(name: str) -> str:
    return _COUNTER_PREFIX + name


def lease_name(key: bytes) -> str:
    return _LEASE_PREFIX + key.hex()
