"""The names under which a Redis has records, leases and the log of replaced records (pure)."""

_RECORD_PREFIX = "embedding:"
_LEASE_PREFIX = "embedding-lease:"
CHANGES_NAME = "embedding-changes"


def record_name(key: bytes) -> str:
    return _RECORD_PREFIX + key.hex()


def lease_name(key: bytes) -> str:
    return _LEASE_PREFIX + key.hex()
