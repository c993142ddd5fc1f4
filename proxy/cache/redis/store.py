"""Redis, Valkey and what speaks like them, by one URL: one server, a cluster, or the master that Sentinel names.

Start-up does not connect: a Redis that is down or comes later costs hits, nothing else.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.cache.redis import redis_url
from proxy.cache.redis.cluster import Cluster
from proxy.cache.redis.connection import Command
from proxy.cache.redis.node import Node, store_error
from proxy.cache.redis.redis_url import Address, Kind, RedisURL
from proxy.cache.redis.sentinel import Master
from proxy.cache.redis.topology import OneServer, Servers
from proxy.cache.store import NOTHING
from proxy.errors import StoreError
from proxy.tasks import TaskSet, log_to

_log = logging.getLogger(__name__)

_PREFIX = "embedding:"
_LEASE_PREFIX = "embedding-lease:"
# One MGET of many keys costs ever more a key once its answer outgrows the socket buffers (measured: 6.5 µs a key at
# 128 keys, 16.6 at 2048).
_KEYS_PER_COMMAND = 128
# A server was not asked, or did not say anything. What it refuses it has at least answered.
_SILENCE = frozenset({"timeout", "connection", "busy"})


class RedisStore:
    """Reads of all requests that ask in one turn of the event loop travel together, to each server in one piece."""

    expires = True
    has_leases = True

    def __init__(self, url: str, *, timeout_s: float, max_connections: int) -> None:
        """``max_connections`` are to each server."""
        self._servers = _open(redis_url.parse(url), timeout_s=timeout_s, max_connections=max_connections)
        self._timeout_s = timeout_s
        self._gathering: dict[Address, _Chunk] = {}
        self._reads = TaskSet(log_to(_log, "a read from Redis"))

    async def get_many(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        results = await self._values_of(keys, timeout_s=timeout_s)
        found = {key: value for key, value in results.items() if isinstance(value, bytes)}
        self._raise_failure(results.values(), found)
        return found

    async def _values_of(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, object]:
        """By key its value, None, or a `RedisError`. Raises `StoreError` if it is not known which server to ask."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        await self._ready(timeout_s)
        chunks = self._gather(keys)
        if chunks:
            # Waiting does not cancel the chunks: others wait for them too.
            _, late = await asyncio.wait([chunk.task for chunk in chunks], timeout=max(0.0, end_s - loop.time()))
            if late:
                await asyncio.sleep(0)  # it may be this loop that is late, and the answers in its hands already
        results: dict[bytes, object] = dict.fromkeys(keys, RedisConnectionError("no server is known to have it"))
        for chunk, asked in chunks.items():
            if chunk.task.done():
                chunk.task.result()  # raises what nobody thought of
            missing = RedisTimeoutError(f"no answer in {timeout_s * 1000:.0f} ms")
            results.update((key, chunk.results.get(_name(key), missing)) for key in asked)
        return results

    def _gather(self, keys: Sequence[bytes]) -> "dict[_Chunk, list[bytes]]":
        """Put ``keys`` into chunks that leave at the end of this turn; returns which key is in which."""
        places: dict[_Chunk, list[bytes]] = {}
        for key in keys:
            name = _name(key)
            server = self._servers.of(name)
            if server is None:
                continue
            chunk = self._gathering.get(server)
            if chunk is None or len(chunk.names) >= _KEYS_PER_COMMAND:
                chunk = self._gathering[server] = _Chunk()
                chunk.task = self._reads.start(self._read(server, chunk))
            chunk.names[name] = None
            places.setdefault(chunk, []).append(key)
        return places

    async def _read(self, server: Address, chunk: "_Chunk") -> None:
        # A task's first step runs after everything that was ready when it was made: by then the turn's requests
        # have added their keys.
        if self._gathering.get(server) is chunk:
            del self._gathering[server]
        await self._servers.get(server, list(chunk.names), chunk.results)

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: float | None,
        overwrite: bool,
        spoilt: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]:
        put = _Put(self._run, partial(self._values_of, timeout_s=self._timeout_s), ttl_s)
        if overwrite:
            await put.set(values)
        else:
            replaced = await put.replace(values, spoilt) if spoilt else ()
            free = {key: value for key, value in values.items() if key not in replaced}
            # A key that is taken and has no value was evicted between the two commands; or it has a value of another
            # type, which no record is, and which would be in the way for ever.
            await put.set(await put.set_free(await put.set_free(free)))
        self._raise_failure(put.results, put.standing, accepted=put.accepted)
        return put.standing

    async def lease_many(self, keys: Sequence[bytes], *, ttl_s: float) -> set[bytes]:
        results = await self._set_leases(keys, ttl_s, "NX")
        if all(isinstance(result, RedisError) for result in results.values()):
            self._raise_failure(results.values(), {})
        # Where a server can't be asked, whoever wants its keys goes alone.
        return {key for key in keys if results[_lease_name(key)] is not None}

    async def extend_many(self, keys: Collection[bytes], *, ttl_s: float) -> None:
        results = await self._set_leases(keys, ttl_s)
        self._raise_failure(results.values(), {})

    async def _set_leases(self, keys: Collection[bytes], ttl_s: float, *options: str) -> dict[str, object]:
        # Giving up is a lease of 1 ms, so that no further command need be allowed to the proxy's Redis user.
        ttl_ms = max(1, int(ttl_s * 1000))
        names = [_lease_name(key) for key in keys]
        return await self._run({name: ("SET", name, b"", "PX", ttl_ms, *options) for name in names})

    async def _run(self, commands: Mapping[str, Command]) -> dict[str, object]:
        """By name what its command was answered, or a `RedisError`."""
        await self._ready(self._timeout_s)
        results: dict[str, object] = dict.fromkeys(commands, RedisConnectionError("no server is known to have it"))
        shares: dict[Address, list[str]] = {}
        for name in commands:
            if (server := self._servers.of(name)) is not None:
                shares.setdefault(server, []).append(name)
        await asyncio.gather(*(self._run_share(*share, commands, results) for share in shares.items()))
        return results

    async def _run_share(
        self, server: Address, names: Sequence[str], commands: Mapping[str, Command], results: dict[str, object]
    ) -> None:
        # In pieces, so that the timeout of a connection is about as much as one can carry in it.
        for start in range(0, len(names), _KEYS_PER_COMMAND):
            piece = names[start : start + _KEYS_PER_COMMAND]
            await self._servers.run(server, {name: commands[name] for name in piece}, results)
            last = results[piece[-1]]
            if isinstance(last, RedisError) and store_error(last).reason in _SILENCE:
                results.update(dict.fromkeys(names[start:], last))
                return

    async def _ready(self, timeout_s: float) -> None:
        try:
            await self._servers.ready(timeout_s=timeout_s)
        except RedisError as error:
            raise store_error(error) from error

    def _raise_failure(
        self, results: Collection[object], found: dict[bytes, bytes], *, accepted: Collection[bytes] = ()
    ) -> None:
        """Raise the first error among ``results``, if there is one."""
        failure = next((result for result in results if isinstance(result, RedisError)), None)
        if failure is None:
            return
        error = store_error(failure)
        has_answers = self._servers.is_partially_up or not all(isinstance(result, RedisError) for result in results)
        is_partial = error.reason in _SILENCE and has_answers
        raise StoreError(error.reason, str(error), found=found, accepted=accepted, is_partial=is_partial) from failure

    async def aclose(self) -> None:
        await self._servers.aclose()


class _Put:
    """One `put_many`: what was stored, what stood there before, and what all commands were answered."""

    def __init__(
        self,
        run: Callable[[Mapping[str, Command]], Awaitable[dict[str, object]]],
        values_of: Callable[[Sequence[bytes]], Awaitable[dict[bytes, object]]],
        ttl_s: float | None,
    ) -> None:
        self._run = run
        self._values_of = values_of
        self._ttl = () if ttl_s is None else ("PX", max(1, int(ttl_s * 1000)))
        self.accepted: set[bytes] = set()
        self.standing: dict[bytes, bytes] = {}
        self.results: list[object] = []

    async def set(self, values: Mapping[bytes, bytes]) -> None:
        """Store ``values`` whatever is there."""
        await self._set(values, ())

    async def set_free(self, values: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Store ``values`` whose keys are free; returns those whose keys are taken and have no value all the same."""
        taken = await self._set(values, ("NX",))
        there = await self._read(taken)
        self.standing |= {key: value for key, value in there.items() if value is not None}
        return {key: values[key] for key, value in there.items() if value is None}

    async def replace(self, values: Mapping[bytes, bytes], spoilt: Mapping[bytes, bytes]) -> Collection[bytes]:
        """Store ``values`` whose keys have what is ``spoilt``; returns these keys.

        Between the two commands somebody else may do the same. Only a script could keep them from it.
        """
        there = await self._read(list(spoilt))
        replaced = {key: values[key] for key, value in there.items() if value == spoilt[key]}
        await self._set(replaced, ())
        return replaced.keys()

    async def _set(self, values: Mapping[bytes, bytes], options: tuple[str, ...]) -> list[bytes]:
        """Returns the keys that are taken."""
        if not values:
            return []
        commands: dict[str, Command] = {
            _name(key): ("SET", _name(key), value, *self._ttl, *options) for key, value in values.items()
        }
        results = await self._run(commands)
        self.results += results.values()
        self.accepted |= {key for key in values if results[_name(key)] == b"OK"}
        return [key for key in values if results[_name(key)] is None]

    async def _read(self, keys: list[bytes]) -> dict[bytes, bytes | None]:
        """The values of ``keys``, None where there is none; without those that could not be asked for."""
        if not keys:
            return {}
        results = await self._values_of(keys)
        self.results += results.values()
        return {key: value for key, value in results.items() if value is None or isinstance(value, bytes)}


class _Chunk:
    """Names that travel to one server in one piece, and what it has answered so far."""

    __slots__ = ("names", "results", "task")

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.results: dict[str, object] = {}
        self.task: asyncio.Task[None]


def _open(url: RedisURL, *, timeout_s: float, max_connections: int) -> Servers:
    node = partial(Node, is_tls=url.is_tls, timeout_s=timeout_s, max_connections=max_connections)
    connect = partial(node, login=url.login, database=url.database)
    match url.kind:
        case Kind.CLUSTER:
            return Cluster(url.addresses, connect)
        case Kind.SENTINEL:
            sentinels = [node(address, login=url.sentinel_login) for address in url.addresses]
            return Master(url.master, sentinels, connect)
        case Kind.ONE:
            return OneServer(connect(url.addresses[0]))


def _name(key: bytes) -> str:
    return _PREFIX + key.hex()


def _lease_name(key: bytes) -> str:
    return _LEASE_PREFIX + key.hex()
