"""Fixtures: the servers under test, each as Redis and as Valkey."""

import pytest

from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer
from tests.support.servers import Servers


@pytest.fixture
def redis_server(servers: Servers, program: str) -> RedisServer:
    return servers.one(program)


@pytest.fixture
def redis_cluster(servers: Servers, program: str) -> RedisCluster:
    return servers.cluster(program)
