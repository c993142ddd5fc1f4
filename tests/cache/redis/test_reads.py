"""Long reads send few commands at a time, and none to a server that seems to be down."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.cache.redis.names import record_name
from proxy.cache.redis.node import NoFreeConnection
from proxy.cache.redis.reads import Reads
from proxy.cache.redis.redis_url import Address
from tests.support.dict_store import key_of

SERVERS: list[Address] = [("a", 1), ("b", 2)]
COUNT, NAMES_A_COMMAND = 1000, 16
KEYS = [key_of(number) for number in range(COUNT)]


class TwoServers:
    """Each has every other name. A command has its reply in a later iteration of the event loop."""

    is_ready = True

    def __init__(self) -> None:
        self.failures: dict[Address, RedisError] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.commands: list[Address] = []
        self.running: list[Address] = []
        self.most_running = 0

    def by_server(self, names: Sequence[str]) -> dict[Address, Sequence[str]]:
        return {server: names[number::2] for number, server in enumerate(SERVERS)}

    async def get(self, server: Address, names: Sequence[str], results: dict[str, object]) -> None:
        self.commands.append(server)
        self.running.append(server)
        self.most_running = max(self.most_running, self.running.count(server))
        assert len(names) <= NAMES_A_COMMAND
        await asyncio.sleep(0)
        await self.gate.wait()
        self.running.remove(server)
        failure = self.failures.get(server)
        results.update((name, failure or name.encode()) for name in names)


@pytest.fixture
async def servers() -> TwoServers:
    return TwoServers()


@pytest.fixture
def reads(servers: TwoServers) -> Reads:
    as_servers: Any = servers
    return Reads(as_servers, max_names=NAMES_A_COMMAND)


async def test_a_long_read_has_all_values_and_few_commands_at_a_time(servers: TwoServers, reads: Reads) -> None:
    values = await reads.get(KEYS, timeout_s=60)
    assert values == {key: record_name(key).encode() for key in KEYS}
    assert list(values) == KEYS
    assert [servers.commands.count(server) for server in SERVERS] == [-(-COUNT // 2 // NAMES_A_COMMAND)] * 2
    assert servers.most_running == 3


@pytest.mark.parametrize("failure", [RedisTimeoutError("no reply"), RedisConnectionError("closed")])
async def test_a_server_that_seems_down_gets_no_further_commands_and_others_get_theirs(
    servers: TwoServers, reads: Reads, failure: RedisError
) -> None:
    servers.failures = {SERVERS[0]: failure}
    values = await reads.get(KEYS, timeout_s=60)
    assert list(values.values())[::2] == [failure] * (COUNT // 2)
    assert list(values.values())[1::2] == [record_name(key).encode() for key in KEYS[1::2]]
    assert servers.commands.count(SERVERS[0]) == 3


@pytest.mark.parametrize("failure", [ResponseError("refused"), NoFreeConnection("busy"), RedisError("corrupt")])
async def test_other_failures_end_no_read(servers: TwoServers, reads: Reads, failure: RedisError) -> None:
    servers.failures = {SERVERS[0]: failure}
    await reads.get(KEYS, timeout_s=60)
    assert len(set(map(servers.commands.count, SERVERS))) == 1


async def test_a_read_that_nobody_waits_for_any_more_sends_no_further_commands(
    servers: TwoServers, reads: Reads
) -> None:
    servers.gate.clear()
    values = await reads.get(KEYS, timeout_s=0)
    assert {type(value) for value in values.values()} == {RedisTimeoutError}
    sent = len(servers.commands)
    servers.gate.set()
    await reads._tasks.join()
    assert len(servers.commands) == sent
