"""Redis, Valkey and compatible servers, by one URL: one server, a cluster, or the master that Sentinel names.

Start-up does not connect: while Redis is down, hits are lost and requests still succeed.
"""

import asyncio
from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import partial
from typing import cast

from redis.exceptions import RedisError

from proxy.cache.redis import redis_url
from proxy.cache.redis.change_log import ChangeLog
from proxy.cache.redis.cluster import Cluster
from proxy.cache.redis.connection import Command
from proxy.cache.redis.names import CHANGES_NAME, counter_name, lease_name, record_name, record_names
from proxy.cache.redis.node import Node, store_error
from proxy.cache.redis.put import Put
from proxy.cache.redis.reads import Reads
from proxy.cache.redis.redis_url import Address, Kind, RedisURL
from proxy.cache.redis.scan import next_names
from proxy.cache.redis.sentinel import Master
from proxy.cache.redis.topology import OneServer, Servers, no_server, require_ready
from proxy.cache.store import NOTHING, TTL, Changes, Page, Purge
from proxy.errors import StoreError
from proxy.turns import in_iterations

# An MGET of many keys costs more for each key once its reply outgrows the socket buffers (measured: 6.5 µs a key at 128
# keys, 16.6 at 2048).
_NAMES_PER_COMMAND = 128
_KEYS_AN_ITERATION = 256  # whose commands are made in a quarter of a millisecond
# The server sent no reply to this command. A refusal is a reply.
_NO_REPLY = frozenset({"timeout", "connection", "busy"})


class RedisStore:
    expires = True
    has_leases = True

    def __init__(self, url: str, *, timeout_s: float, max_connections: int) -> None:
        """``max_connections`` is for each server."""
        self.max_reads = max_connections
        self._servers = _open(redis_url.parse(url), timeout_s=timeout_s, max_connections=max_connections)
        self._timeout_s = timeout_s
        self._reads = Reads(self._servers, max_names=_NAMES_PER_COMMAND)
        self._log = ChangeLog(self._run_on_log)

    def parts(self, keys: Sequence[bytes]) -> Mapping[Hashable, Sequence[bytes]]:
        if len(self._servers.addresses) <= 1:
            return {None: keys}
        by_name = dict(zip(record_names(keys), keys, strict=True))
        parts: dict[Hashable, list[bytes]] = {
            server: [by_name.pop(name) for name in names]
            for server, names in self._servers.by_server(list(by_name)).items()
        }
        if by_name:  # whose server is not known
            parts[None] = list(by_name.values())
        return parts

    async def get_many(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        results = await self._reads.get(keys, timeout_s=timeout_s)
        if set(map(type, results.values())) <= {bytes}:
            return cast("dict[bytes, bytes]", results)
        found = {key: value for key, value in results.items() if isinstance(value, bytes)}
        self._raise_failure(results.values(), found)
        return found

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: TTL,
        overwrite: bool,
        invalid: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]:
        put = Put(self._run, partial(self._reads.get, timeout_s=self._timeout_s), ttl_s)
        if overwrite:
            await self._overwrite(put, values)
        else:
            replaced = await put.replace(values, invalid) if invalid else ()
            free = {key: value for key, value in values.items() if key not in replaced}
            # A key that is taken and has no value was evicted between the two commands. Or it has a value of another
            # type, which is not a record and would block the key for ever.
            if blocked := await put.set_free(await put.set_free(free)):
                await self._overwrite(put, blocked)
        self._raise_failure(put.results, put.existing, accepted=put.accepted)
        return put.existing

    async def _overwrite(self, put: Put, values: Mapping[bytes, bytes]) -> None:
        # Announced before the write, because this process may die right after it; and again after the write, because
        # another process may have read the old value in between.
        await self._log.announce(values)
        await put.set(values)
        await self._log.announce(values)

    async def scan(self, cursor: bytes = b"") -> Page:
        await require_ready(self._servers, timeout_s=self._timeout_s)
        part = await next_names(self._servers, cursor)
        return Page(await self.get_many(part.keys, timeout_s=self._timeout_s) if part.keys else {}, part.cursor)

    async def delete_many(self, keys: Collection[bytes]) -> int:
        names = [record_name(key) for key in keys]
        # Before and after, for the reasons of `_overwrite`.
        await self._log.announce(keys)
        results = await self._run({name: ("DEL", name) for name in names})
        await self._log.announce(keys)
        self._raise_failure(results.values(), {})
        return sum(result for result in results.values() if isinstance(result, int))

    async def announce_purge(self, purge: Purge) -> None:
        await self._log.announce_purge(purge)

    async def changes(self) -> Changes:
        return await self._log.read()

    async def add(self, name: str, amount: int, *, expires_at_s: int) -> int:
        """As `proxy.cache.store.CounterStore`."""
        counter = counter_name(name)
        commands: list[Command] = [("INCRBY", counter, amount), ("EXPIREAT", counter, expires_at_s)]
        if not amount:  # a name that is only read must not fill the server
            commands = [("GET", counter)]
        total, *_ = await self._run_together(counter, commands)
        if isinstance(total, RedisError):
            raise store_error(total) from total
        try:
            return int(total or 0)  # type: ignore[call-overload,no-any-return] # whatever it is
        except (TypeError, ValueError):
            raise StoreError("corrupt", f"{counter}: not a number") from None

    async def lease_many(self, keys: Sequence[bytes], *, ttl_s: float) -> set[bytes]:
        results = await self._set_leases(keys, ttl_s, "NX")
        if all(isinstance(result, RedisError) for result in results):
            self._raise_failure(results, {})
        # Keys whose server fails are granted: the caller fetches them without a lease.
        return {key for key, result in zip(keys, results, strict=True) if result is not None}

    async def extend_many(self, keys: Collection[bytes], *, ttl_s: float) -> None:
        results = await self._set_leases(list(keys), ttl_s)
        self._raise_failure(results, {})

    async def _set_leases(self, keys: Sequence[bytes], ttl_s: float, *options: str) -> Collection[object]:
        """The results of ``keys``, which are distinct, in their order."""
        # A release is a lease of 1 ms, so that the proxy's Redis user needs no permission for a further command.
        ttl_ms = max(1, int(ttl_s * 1000))
        commands: dict[str, Command] = {}
        async for some in in_iterations(keys, size=_KEYS_AN_ITERATION):
            commands |= {name: ("SET", name, b"", "PX", ttl_ms, *options) for name in map(lease_name, some)}
        return (await self._run(commands)).values()

    async def _run(self, commands: Mapping[str, Command]) -> dict[str, object]:
        """By name the reply to its command, or a `RedisError`, in the order of the commands."""
        await require_ready(self._servers, timeout_s=self._timeout_s)
        results: dict[str, object] = dict.fromkeys(commands, no_server())
        names = self._servers.by_server(list(commands))
        await asyncio.gather(*(self._run_on(server, its, commands, results) for server, its in names.items()))
        return results

    async def _run_on_log(self, commands: Sequence[Command]) -> list[object]:
        return await self._run_together(CHANGES_NAME, commands)

    async def _run_together(self, name: str, commands: Sequence[Command]) -> list[object]:
        """The replies of the server that has ``name``, each an object or a `RedisError`."""
        results: dict[str, object] = {str(number): no_server() for number in range(len(commands))}
        try:
            await self._servers.ready(timeout_s=self._timeout_s)
        except RedisError as error:
            return [error] * len(commands)
        for server in self._servers.by_server([name]):
            await self._servers.run(server, dict(zip(results, commands, strict=True)), results)
        return list(results.values())

    async def _run_on(
        self, server: Address, names: Sequence[str], commands: Mapping[str, Command], results: dict[str, object]
    ) -> None:
        # In chunks, since the timeout of a connection applies to all that is sent at once.
        for start in range(0, len(names), _NAMES_PER_COMMAND):
            chunk = names[start : start + _NAMES_PER_COMMAND]
            await self._servers.run(server, {name: commands[name] for name in chunk}, results)
            last = results[chunk[-1]]
            if isinstance(last, RedisError) and store_error(last).reason in _NO_REPLY:
                results.update(dict.fromkeys(names[start:], last))
                return

    def _raise_failure(
        self, results: Collection[object], found: dict[bytes, bytes], *, accepted: Collection[bytes] = ()
    ) -> None:
        """Raise the first error among ``results``, if there is one."""
        failure = next((result for result in results if isinstance(result, RedisError)), None)
        if failure is None:
            return
        error = store_error(failure)
        has_replies = self._servers.is_partially_up or not all(isinstance(result, RedisError) for result in results)
        is_partial = error.reason in _NO_REPLY and has_replies
        raise StoreError(error.reason, str(error), found=found, accepted=accepted, is_partial=is_partial) from failure

    async def aclose(self) -> None:
        await self._reads.aclose()
        await self._servers.aclose()


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
