"""A purge by conditions, as the logs of changes have it (pure)."""

import orjson

from proxy.cache.store import PurgedModels
from proxy.protocol.records import SCOPE_BYTES


def encode(models: PurgedModels) -> bytes:
    scope = None if models.scope is None else models.scope.hex()
    return orjson.dumps({"model": models.pattern, "scope": scope, "stored_before_s": models.stored_before_s})


def decode(text: bytes) -> PurgedModels | None:
    """None if it is of another version, or damaged: then it could cover any entry."""
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    match fields:
        case {"model": str(pattern), "scope": scope, "stored_before_s": int() | float() | None as before_s, **rest}:
            pass
        case _:
            return None
    if rest or not _is_scope(scope):
        return None
    return PurgedModels(pattern, None if scope is None else bytes.fromhex(scope), before_s)


def _is_scope(scope: object) -> bool:
    if not isinstance(scope, str):
        return scope is None
    try:
        return len(bytes.fromhex(scope)) in (0, SCOPE_BYTES)
    except ValueError:
        return False
