"""Redis, Valkey and what speaks like them, by one URL: one server, a cluster, or the master that Sentinel names.

Start-up does not connect: a Redis that is down or comes later costs hits, nothing else.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy import redisurl
from proxy.errors import StoreError
from proxy.redisurl import Address, Kind, RedisURL
from proxy.store.cluster import Cluster
from proxy.store.node import Command, Node, store_error
from proxy.store.sentinel import Master
from proxy.store.servers import OneServer, Servers

_PREFIX = "embedding:"
_LEASE_PREFIX = "embedding-lease:"
# One MGET of many keys costs ever more a key once its answer outgrows the socket buffers (measured: 6.5 µs a key at
# 128 keys, 16.6 at 2048).
_KEYS_PER_COMMAND = 128
# A server was not asked, or did not say anything. What it refuses it has at least answered.
_SILENCE = frozenset({"timeout", "connection", "busy"})


class RedisStore:
    """Reads of all requests that ask in one turn of the event loop travel together, to each server in one piece."""

    def __init__(self, url: str, *, timeout_s: float, max_connections: int) -> None:
        """``max_connections`` are to each server."""
        self._servers = _open(redisurl.parse(url), timeout_s=timeout_s, max_connections=max_connections)
        self._timeout_s = timeout_s
        self._gathering: dict[Address, _Chunk] = {}

    async def get_many(self, keys: Sequence[bytes], *, budget_s: float) -> dict[bytes, bytes]:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + budget_s
        await self._ready(budget_s)
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
            missing = RedisTimeoutError(f"no answer in {budget_s * 1000:.0f} ms")
            results.update((key, chunk.results.get(_name(key), missing)) for key in asked)
        found = {key: value for key, value in results.items() if isinstance(value, bytes)}
        self._raise_failure(results.values(), found)
        return found

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
                chunk.task = asyncio.create_task(self._read(server, chunk))
                chunk.task.add_done_callback(_retrieve)
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
        self, values: Mapping[bytes, bytes], *, ttl_s: float | None, overwrite: bool
    ) -> dict[bytes, bytes]:
        ttl = () if ttl_s is None else ("PX", max(1, int(ttl_s * 1000)))
        options = ttl if overwrite else (*ttl, "NX")
        results = await self._run({_name(key): ("SET", _name(key), value, *options) for key, value in values.items()})
        taken = [key for key in values if results[_name(key)] is None]
        standing = await self.get_many(taken, budget_s=self._timeout_s) if taken else {}
        self._raise_failure(results.values(), standing)
        return standing

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

    def _raise_failure(self, results: Collection[object], found: dict[bytes, bytes]) -> None:
        """Raise the first error among ``results``, if there is one."""
        failure = next((result for result in results if isinstance(result, RedisError)), None)
        if failure is None:
            return
        error = store_error(failure)
        has_answers = self._servers.some_work or not all(isinstance(result, RedisError) for result in results)
        is_partial = error.reason in _SILENCE and has_answers
        raise StoreError(error.reason, str(error), found=found, is_partial=is_partial) from failure

    async def aclose(self) -> None:
        await self._servers.aclose()


class _Chunk:
    """Names that travel to one server in one piece, and what it has answered so far."""

    __slots__ = ("names", "results", "task")

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.results: dict[str, object] = {}
        self.task: asyncio.Task[None]


def _retrieve(task: "asyncio.Task[None]") -> None:
    """Everyone who waited may be gone; then nobody else would look at the exception, and asyncio complain of it."""
    if not task.cancelled():
        task.exception()


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
