"""The master that Redis Sentinel names, and after a failover the next one.

redis-py's own client asks the sentinels in turn for every new connection; this one asks all at once, when something
fails. What a client has to do: https://redis.io/docs/latest/develop/reference/sentinel-clients/
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
    """Every name is on the master: whom most of the sentinels that answer take for it."""

    def __init__(self, name: str, sentinels: Sequence[Node], connect: Callable[[Address], Node]) -> None:
        super().__init__(None)
        self._name = name
        self._sentinels = sentinels
        self._connect = connect
        self._learner = TopologyRefresher(self._learn)

    async def ready(self, *, timeout_s: float) -> None:
        await self._learner.wait(timeout_s=timeout_s)

    async def _on_failure(self, node: Node, failure: RedisError) -> None:
        self._learner.learn_soon()

    async def _learn(self) -> None:
        # All are asked, as one that is cut off from the others may go on naming the last master.
        said = await asyncio.gather(*(self._ask_sentinel(sentinel) for sentinel in self._sentinels))
        named = Counter(answer for answer in said if isinstance(answer, tuple))
        if not named:
            raise RedisConnectionError(f"no sentinel names the master: {'; '.join(map(str, said))}")
        ((address, _),) = named.most_common(1)
        last = self._node
        if last is None or last.address != address:
            self._node = self._connect(address)
            if last is not None:
                await last.retire()

    async def _ask_sentinel(self, sentinel: Node) -> Address | str:
        """The master's address, or why there is none."""
        command: Command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
        try:
            (answer,) = await sentinel.run([command])
        except RedisError as error:
            return f"{sentinel}: {error}"
        match answer:
            case [bytes(host), bytes(port)]:
                try:
                    return announced(host.decode(), int(port))
                except ValueError as error:
                    return f"{sentinel}: {error}"
            case None:
                return f"{sentinel} knows no {self._name}"
        return f"{sentinel}: {answer}"

    async def aclose(self) -> None:
        await self._learner.aclose()
        await super().aclose()
        for sentinel in self._sentinels:
            await sentinel.aclose()
