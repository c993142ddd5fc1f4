"""The names under which a Redis has records and leases (pure)."""

_RECORD_PREFIX = "embedding:"
_LEASE_PREFIX = "embedding-lease:"


def record_name(key: bytes) -> str:
    return _RECORD_PREFIX + key.hex()


def lease_name(key: bytes) -> str:
    return _LEASE_PREFIX + key.hex()
