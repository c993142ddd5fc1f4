"""The names of all records in a Redis, some at a time: SCAN, one server after the other.

SCAN lists every name that was there all the time, possibly several times:
https://redis.io/docs/latest/commands/scan/#scan-guarantees
A slot is missed if it moves during the scan from a server that is not scanned yet to one that is already scanned.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgpack
from redis.exceptions import RedisError

from proxy.cache.redis.names import RECORDS_PATTERN, record_key
from proxy.cache.redis.node import store_error
from proxy.cache.redis.redis_url import Address
from proxy.cache.redis.topology import Servers
from proxy.errors import StoreError

# Less than a millisecond of the server's time.
_NAMES_PER_SCAN = 512
_SCAN = "SCAN"
_BEGIN = b"0"  # also of a scan that has ended


class Keys(NamedTuple):
    keys: Sequence[bytes]
    cursor: bytes | None


class _Progress(NamedTuple):
    done: Collection[Address]
    server: Address | None
    position: bytes  # SCAN's cursor on that server


async def next_names(servers: Servers, cursor: bytes) -> Keys:
    """The keys whose names come next, as `Store.scan`. Raises `StoreError`."""
    progress = _parse(cursor)
    server, position = progress.server, progress.position
    if server not in servers.addresses:  # at first, and if it failed and another has its slots
        position = _BEGIN
        server = min((address for address in servers.addresses if address not in progress.done), default=None)
    if server is None:
        return Keys([], None)
    names, position = await _scan(servers, server, position)
    keys = list(dict.fromkeys(key for name in names if (key := record_key(name)) is not None))
    if position != _BEGIN:
        return Keys(keys, _pack(_Progress(progress.done, server, position)))
    done = [*progress.done, server]
    is_last = set(servers.addresses) <= set(done)
    return Keys(keys, None if is_last else _pack(_Progress(done, None, _BEGIN)))


async def _scan(servers: Servers, server: Address, position: bytes) -> tuple[list[bytes], bytes]:
    results: dict[str, object] = {}
    command = (_SCAN, position, "MATCH", RECORDS_PATTERN, "COUNT", _NAMES_PER_SCAN)
    await servers.run(server, {_SCAN: command}, results)
    match results[_SCAN]:
        case RedisError() as error:
            raise store_error(error) from error
        case [bytes(position), list(names)]:
            return [name for name in names if isinstance(name, bytes)], position
    raise StoreError("corrupt", "unexpected reply to SCAN")


def _pack(progress: _Progress) -> bytes:
    packed: bytes = msgpack.packb(progress)
    return packed


def _parse(cursor: bytes) -> _Progress:
    if not cursor:
        return _Progress((), None, _BEGIN)
    done, server, position = msgpack.unpackb(cursor, use_list=False)
    return _Progress(done, server, position)
