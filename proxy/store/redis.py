"""Redis, Valkey and what speaks like them, by one URL.

Start-up does not connect: a Redis that is down or comes later costs hits, nothing else.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.errors import StoreError

_PREFIX = "embedding:"
_LEASE_PREFIX = "embedding-lease:"
# One MGET of many keys costs ever more a key once its answer outgrows the socket buffers (measured: 6.5 µs a key at
# 128 keys, 16.6 at 2048).
_KEYS_PER_COMMAND = 128


class RedisStore:
    """Reads of all requests that ask in one turn of the event loop travel together."""

    def __init__(self, url: str, *, timeout_s: float, max_connections: int) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # redis-py's own retries take 58 s over one GET from a hung server.
            retry=Retry(NoBackoff(), 0),
            # RESP2 without the client's introduction: a connection costs no round trip and needs no further ACL.
            protocol=2,
            driver_info=None,
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._timeout_s = timeout_s
        self._gathering: _Chunk | None = None

    async def get_many(self, keys: Sequence[bytes], *, budget_s: float) -> dict[bytes, bytes]:
        chunks = self._gather(keys)
        # Waiting does not cancel the chunks: others wait for them too.
        _, late = await asyncio.wait([chunk.task for chunk in chunks], timeout=budget_s)
        if late:
            await asyncio.sleep(0)  # it may be this loop that is late, and the answers in its hands already
        found: dict[bytes, bytes] = {}
        failure: StoreError | None = None
        for chunk, asked in chunks.items():
            if not chunk.task.done():
                failure = StoreError("timeout", f"no answer in {budget_s * 1000:.0f} ms")
            elif isinstance(error := chunk.task.exception(), StoreError):
                failure = error
            else:
                answer = chunk.task.result()
                found.update((key, answer[key]) for key in asked if key in answer)
        if failure is not None:
            raise StoreError(failure.reason, str(failure), found=found)
        return found

    def _gather(self, keys: Sequence[bytes]) -> "dict[_Chunk, list[bytes]]":
        """Put ``keys`` into chunks that leave at the end of this turn; returns which key is in which."""
        places: dict[_Chunk, list[bytes]] = {}
        for key in keys:
            chunk = self._gathering
            if chunk is None or chunk.has_left or len(chunk.keys) >= _KEYS_PER_COMMAND:
                chunk = self._gathering = _Chunk()
                chunk.task = asyncio.create_task(self._read(chunk))
                chunk.task.add_done_callback(_retrieve)
            chunk.keys[key] = None
            places.setdefault(chunk, []).append(key)
        return places

    async def _read(self, chunk: "_Chunk") -> dict[bytes, bytes]:
        # A task's first step runs after everything that was ready when it was made: by then the turn's requests
        # have added their keys.
        chunk.has_left = True
        keys = list(chunk.keys)
        try:
            values = await self._redis.mget([_name(key) for key in keys])
        except RedisError as error:
            raise _store_error(error) from error
        if not isinstance(values, list) or len(values) != len(keys):
            raise StoreError("corrupt", "MGET was answered with something else")
        return {key: value for key, value in zip(keys, values, strict=True) if isinstance(value, bytes)}

    async def put_many(
        self, values: Mapping[bytes, bytes], *, ttl_s: float | None, overwrite: bool
    ) -> dict[bytes, bytes]:
        results: list[object] = []
        pairs = list(values.items())
        # In pieces, so that the timeout of a connection is about as much as one can carry in it.
        for start in range(0, len(pairs), _KEYS_PER_COMMAND):
            results += await self._set(pairs[start : start + _KEYS_PER_COMMAND], ttl_s, nx=not overwrite)
        taken = [key for key, result in zip(values, results, strict=True) if result is None]
        standing = await self.get_many(taken, budget_s=self._timeout_s) if taken else {}
        refused = next((result for result in results if isinstance(result, RedisError)), None)
        if refused is not None:
            raise StoreError(_store_error(refused).reason, str(refused), found=standing)
        return standing

    async def _set(self, pairs: list[tuple[bytes, bytes]], ttl_s: float | None, *, nx: bool) -> list[object]:
        ttl_ms = None if ttl_s is None else max(1, int(ttl_s * 1000))
        pipeline = self._redis.pipeline(transaction=False)
        for key, value in pairs:
            pipeline.set(_name(key), value, px=ttl_ms, nx=nx)
        try:
            # One SET refused for want of memory must not hide what became of the others.
            return await pipeline.execute(raise_on_error=False)
        except RedisError as error:
            raise _store_error(error) from error

    async def lease_many(self, keys: Sequence[bytes], *, ttl_s: float) -> set[bytes]:
        results = await self._set_leases(keys, ttl_s, nx=True)
        return {key for key, result in zip(keys, results, strict=True) if result is not None}

    async def extend_many(self, keys: Collection[bytes], *, ttl_s: float) -> None:
        await self._set_leases(keys, ttl_s, nx=False)

    async def _set_leases(self, keys: Collection[bytes], ttl_s: float, *, nx: bool) -> list[object]:
        ttl_ms = max(1, int(ttl_s * 1000))
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            # Giving up is a lease of 1 ms, so that no further command need be allowed to the proxy's Redis user.
            pipeline.set(_LEASE_PREFIX + key.hex(), b"", px=ttl_ms, nx=nx)
        try:
            return await pipeline.execute()
        except RedisError as error:
            raise _store_error(error) from error

    async def aclose(self) -> None:
        await self._redis.aclose()


class _Chunk:
    """Keys that travel in one MGET."""

    __slots__ = ("has_left", "keys", "task")

    def __init__(self) -> None:
        self.keys: dict[bytes, None] = {}
        self.has_left = False
        self.task: asyncio.Task[dict[bytes, bytes]]


def _retrieve(task: "asyncio.Task[dict[bytes, bytes]]") -> None:
    """Everyone who waited may be gone; then nobody else would look at the exception, and asyncio complain of it."""
    if not task.cancelled():
        task.exception()


def _name(key: bytes) -> str:
    return _PREFIX + key.hex()


def _store_error(error: RedisError | Any) -> StoreError:
    if isinstance(error, RedisTimeoutError):
        reason = "timeout"
    elif isinstance(error, RedisConnectionError) and "No connection available" in str(error):
        reason = "busy"
    elif isinstance(error, RedisConnectionError):
        reason = "connection"
    elif isinstance(error, ResponseError):
        reason = "refused"
    else:
        reason = "corrupt"
    return StoreError(reason, str(error))
