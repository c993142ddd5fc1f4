"""Fixtures: the servers under test, each as Redis and as Valkey."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer
from tests.support.servers import Servers


@pytest.fixture
def redis_server(servers: Servers, program: str) -> RedisServer:
    return servers.one(program)


@pytest.fixture
async def admin(redis_server: RedisServer) -> AsyncIterator[Redis]:
    admin = Redis.from_url(redis_server.url)
    await admin.flushall()
    yield admin
    await admin.aclose()


@pytest.fixture
def redis_cluster(servers: Servers, program: str) -> RedisCluster:
    return servers.cluster(program)
