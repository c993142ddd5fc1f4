"""Redis Cluster: which node has a name, by its slot, and how redirections are followed.

redis-py's own cluster client is not used: in its pipelines an unreachable node fails the commands of all others,
redirected commands are sent again one by one, and CLUSTERDOWN closes every connection and sleeps. The slot of a name,
the errors and the connections are redis-py's.
The rules: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from proxy.breaker import Breaker
from proxy.cache.redis.connection import Command
from proxy.cache.redis.node import Node, store_error
from proxy.cache.redis.redis_url import Address
from proxy.cache.redis.topology import TopologyRefresher, announced
from proxy.cache.store import COOLDOWN_S, MAX_FAILURES

# One because a failover moved the slot, one to the node that imports it. More means that the nodes disagree.
_MAX_REDIRECTS = 3

# The address of a node, and whether it is importing the slot. If so, ASKING has to come before each command.
Target = tuple[Address, bool]
Commands = Mapping[str, Command]


@dataclass(frozen=True, slots=True)
class _Member:
    node: Node
    breaker: Breaker  # so that a node that hangs delays only a few requests


class Cluster:
    """Sends commands to the nodes concurrently. A node that fails makes only the names of its own slots fail."""

    def __init__(self, seeds: Sequence[Address], connect: Callable[[Address], Node]) -> None:
        """``seeds`` are some of the nodes; they tell which others there are."""
        self._seeds = seeds
        self._connect = connect
        self._members: dict[Address, _Member] = {}
        self._slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._refresher = TopologyRefresher(self._refresh)

    @property
    def is_ready(self) -> bool:
        return self._refresher.is_known

    async def ready(self, *, timeout_s: float) -> None:
        await self._refresher.wait(timeout_s=timeout_s)

    @property
    def addresses(self) -> Collection[Address]:
        return {address for address in self._slots if address is not None}

    def by_server(self, names: Sequence[str]) -> Mapping[Address, Sequence[str]]:
        found: dict[Address, list[str]] = {}
        for name in names:
            if (server := self._slots[key_slot(name.encode())]) is None:
                self._refresher.refresh_soon()
            else:
                found.setdefault(server, []).append(name)
        return found

    @property
    def is_partially_up(self) -> bool:
        return any(not member.breaker.has_recent_failure for member in self._members.values())

    async def get(self, server: Address, names: Sequence[str], results: dict[str, object]) -> None:
        # MGET takes names of one slot only. For a key of another type MGET has null, and GET has an error.
        await self.run(server, {name: ("GET", name) for name in names}, results)
        results.update((name, None) for name in names if _is_of_another_type(results[name]))

    async def run(self, server: Address, commands: Commands, results: dict[str, object]) -> None:
        targets: dict[Target, Commands] = {(server, False): commands}
        for _ in range(1 + _MAX_REDIRECTS):
            redirected = await asyncio.gather(*(self._send(target, its, results) for target, its in targets.items()))
            targets = _merged(redirected)
        for its in targets.values():
            results.update(dict.fromkeys(its, RedisError("the nodes redirect to each other")))

    async def _send(self, target: Target, commands: Commands, results: dict[str, object]) -> dict[Target, Commands]:
        """Put the replies into ``results``. Returns the commands that are redirected."""
        address, is_importing = target
        sent: list[Command] = []
        for command in commands.values():
            sent += [("ASKING",), command] if is_importing else [command]
        replies = await self._run(self._member(address), sent)
        redirected: dict[Target, dict[str, Command]] = defaultdict(dict)
        for (name, command), reply in zip(commands.items(), replies[1::2] if is_importing else replies, strict=True):
            if isinstance(reply, AskError):  # or MovedError, a subclass
                try:
                    redirected[self._follow(reply, address)][name] = command
                except ValueError as error:
                    results[name] = RedisError(f"{address[0]} redirects to an invalid address: {error}")
            else:
                results[name] = reply
        if any(isinstance(reply, ClusterDownError) for reply in replies):
            self._refresher.refresh_soon()
        return dict(redirected)

    def _follow(self, redirection: AskError, asked: Address) -> Target:
        address = announced(redirection.host or asked[0], redirection.port)  # no host: the same host
        is_moved = isinstance(redirection, MovedError)
        if is_moved and 0 <= redirection.slot_id < REDIS_CLUSTER_HASH_SLOTS:
            self._slots[redirection.slot_id] = address
            self._refresher.refresh_soon()  # other slots have probably moved too
        return address, not is_moved

    async def _run(self, member: _Member, commands: Sequence[Command]) -> Sequence[object]:
        attempt = member.breaker.attempt()
        if attempt is None:
            self._refresher.refresh_soon()
            return [RedisConnectionError(f"{member.node} failed a moment ago")] * len(commands)
        with attempt:
            try:
                replies = await member.node.run(commands)
            except RedisError as error:
                self._refresher.refresh_soon()
                if store_error(error).reason != "busy":
                    attempt.failed()
                return [error] * len(commands)
            attempt.succeeded()
            return replies

    def _member(self, address: Address) -> _Member:
        if address not in self._members:
            breaker = Breaker(max_failures=MAX_FAILURES, cooldown_s=COOLDOWN_S, clock=time.monotonic)
            self._members[address] = _Member(self._connect(address), breaker)
        return self._members[address]

    async def _refresh(self) -> None:
        """Send CLUSTER SLOTS to one node after the other, those that work first, until one replies."""
        likely = [address for address, member in self._members.items() if not member.breaker.has_recent_failure]
        random.shuffle(
            likely
        )  # so that replicas do not all use the same node, nor one of them always a partitioned one
        reasons = []
        for address in dict.fromkeys([*likely, *self._seeds, *self._members]):
            try:
                (reply,) = await self._member(address).node.run([("CLUSTER", "SLOTS")])
                if isinstance(reply, RedisError):
                    raise reply
                self._assign(_ranges(reply, address))
            except (RedisError, ValueError) as error:
                reasons.append(f"{self._member(address).node}: {error}")
            else:
                return
        raise RedisConnectionError("; ".join(reasons))

    def _assign(self, ranges: Mapping[range, Address]) -> None:
        slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for its, address in ranges.items():
            slots[its.start : its.stop] = [address] * len(its)
        self._slots = slots
        masters = set(ranges.values())
        for address in self._members.keys() - masters:
            self._members.pop(address).node.retire()

    async def aclose(self) -> None:
        await self._refresher.aclose()
        for member in self._members.values():
            await member.node.aclose()


def _is_of_another_type(result: object) -> bool:
    return isinstance(result, ResponseError) and str(result).startswith("WRONGTYPE")


def _merged(redirected: Sequence[dict[Target, Commands]]) -> dict[Target, Commands]:
    merged: dict[Target, Commands] = {}
    for targets in redirected:
        for target, commands in targets.items():
            merged[target] = {**merged.get(target, {}), **commands}
    return merged


def _ranges(reply: object, asked: Address) -> dict[range, Address]:
    """The masters' slots, from the reply to CLUSTER SLOTS. Raises `ValueError` if there are none."""
    if not isinstance(reply, list) or not reply:
        raise ValueError("CLUSTER SLOTS has no slots")
    return dict(_range(entry, asked) for entry in reply)


def _range(entry: object, asked: Address) -> tuple[range, Address]:
    match entry:
        case [int(first), int(last), [bytes() | None as host, int(port), *_], *_] if (
            0 <= first <= last < REDIS_CLUSTER_HASH_SLOTS
        ):
            # No host: the same host.
            return range(first, last + 1), announced(host.decode() if host else asked[0], port)
    raise ValueError("unexpected reply to CLUSTER SLOTS")
