"""Which Redis and Valkey the tests run with, and the fixtures that start them.

Where none can be had, the run says so once, at its start, and skips what needs one. With ``CI=true`` each of the two
must be there, and nothing that needs one is skipped.
"""

import os
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.redis_cluster import RedisCluster, RedisSentinels
from tests.support.redis_server import HOW_TO_GET_ONE, REDIS, VALKEY, NoServer, RedisServer, executable, programs

IS_CI = os.environ.get("CI") == "true"
# The first name is that of the tests that are skipped where there is none.
AVAILABLE = tuple(programs()) or (REDIS,)


def missing() -> list[str]:
    return [name for name in (REDIS, VALKEY) if name not in programs()]


def pytest_sessionstart(session: pytest.Session) -> None:
    if IS_CI and missing():
        raise pytest.UsageError(f"CI runs the stores' tests with both, and there is no {' and no '.join(missing())}")
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if not programs() and reporter is not None:
        reporter.write_line(f"Tests that need a Redis or Valkey are skipped: {HOW_TO_GET_ONE}", yellow=True)


def pytest_report_header() -> list[str]:
    return [f"{name}: {path}" for name, path in programs().items()]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    return (yield from _skipping())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    return (yield from _skipping())


def _skipping() -> Generator[None, object, object]:
    try:
        return (yield)
    except NoServer as error:
        pytest.skip(str(error))


class Servers:
    """One of each kind for each program, started when first asked for and shared by the tests of a process."""

    def __init__(self, folder: Callable[[str], Path]) -> None:
        self._folder = folder
        self._started: list[RedisServer | RedisCluster | RedisSentinels] = []
        self._one = cache(self._start_one)
        self._cluster = cache(self._start_cluster)
        self._sentinels = cache(self._start_sentinels)

    def one(self, program: str | None) -> RedisServer:
        return self._one(program or AVAILABLE[0])

    def cluster(self, program: str | None) -> RedisCluster:
        """Three masters without replicas, which is quick to start."""
        return self._cluster(program or AVAILABLE[0])

    def sentinels(self, program: str | None) -> RedisSentinels:
        """One sentinel and a master without replicas."""
        return self._sentinels(program or AVAILABLE[0])

    def _start_one(self, program: str) -> RedisServer:
        self._started.append(server := RedisServer(self._folder("redis"), program=program))
        return server

    def _start_cluster(self, program: str) -> RedisCluster:
        self._started.append(cluster := RedisCluster(self._folder("cluster"), masters=3, program=program))
        return cluster

    def _start_sentinels(self, program: str) -> RedisSentinels:
        sentinels = RedisSentinels(self._folder("sentinels"), replicas=0, sentinels=1, program=program)
        self._started.append(sentinels)
        return sentinels

    def emptied(self, kind: str, program: str | None) -> str:
        """The URL of one server, or several, with nothing in it."""
        if kind == "cluster":
            cluster = self.cluster(program)
            cluster.flush()
            return cluster.url
        if kind == "sentinel":
            sentinels = self.sentinels(program)
            sentinels.master.command("FLUSHALL")
            return sentinels.url
        server = self.one(program)
        server.command("FLUSHALL")
        return server.socket_url if kind == "unix" else server.url

    def kill(self) -> None:
        for started in self._started:
            started.kill()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp)
    yield servers
    servers.kill()


@pytest.fixture(params=AVAILABLE)
def program(request: pytest.FixtureRequest) -> str:
    """What is to be started, for tests that run with both."""
    name: str = request.param
    executable(name)
    return name


@pytest.fixture(scope="session")
def redis_server(servers: Servers) -> RedisServer:
    """Whichever there is."""
    return servers.one(None)


@pytest.fixture(scope="session")
def redis_cluster(servers: Servers) -> RedisCluster:
    return servers.cluster(None)
