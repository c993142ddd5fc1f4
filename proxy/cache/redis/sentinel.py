"""The master that Redis Sentinel names, and after a failover the next one.

redis-py's own client queries the sentinels in turn for every new connection; this one queries all at once, after a
failure. What a client has to do: https://redis.io/docs/latest/develop/reference/sentinel-clients/
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from proxy.cache.redis.connection import Command
from proxy.cache.redis.node import Node
from proxy.cache.redis.redis_url import Address
from proxy.cache.redis.topology import OneServer, TopologyRefresher, announced


class Master(OneServer):
    """Every name is on the master, which is the server that most sentinels name."""

    def __init__(self, name: str, sentinels: Sequence[Node], connect: Callable[[Address], Node]) -> None:
        super().__init__(None)
        self._name = name
        self._sentinels = sentinels
        self._connect = connect
        self._refresher = TopologyRefresher(self._refresh)

    @property
    def is_ready(self) -> bool:
        return self._refresher.is_known

    async def ready(self, *, timeout_s: float) -> None:
        await self._refresher.wait(timeout_s=timeout_s)

    def _on_failure(self, node: Node, failure: RedisError) -> None:
        self._refresher.refresh_soon()

    async def _refresh(self) -> None:
        # All are queried, since one that is partitioned may still name the previous master.
        results = await asyncio.gather(*(self._query(sentinel) for sentinel in self._sentinels))
        named = Counter(result for result in results if isinstance(result, tuple))
        if not named:
            raise RedisConnectionError(f"no sentinel names the master: {'; '.join(map(str, results))}")
        ((address, _),) = named.most_common(1)
        previous = self._node
        if previous is None or previous.address != address:
            self._node = self._connect(address)
            if previous is not None:
                previous.retire()

    async def _query(self, sentinel: Node) -> Address | str:
        """The master's address, or why there is none."""
        command: Command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
        try:
            (reply,) = await sentinel.run([command])
        except RedisError as error:
            return f"{sentinel}: {error}"
        match reply:
            case [bytes(host), bytes(port)]:
                try:
                    return announced(host.decode(), int(port))
                except ValueError as error:
                    return f"{sentinel}: {error}"
            case None:
                return f"{sentinel} has no master {self._name}"
        return f"{sentinel}: {reply}"

    async def aclose(self) -> None:
        await self._refresher.aclose()
        await super().aclose()
        for sentinel in self._sentinels:
            await sentinel.aclose()
