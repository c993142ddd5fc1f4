"""Several real Redis servers: a Redis Cluster, and a master with replicas and sentinels."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS

from tests.support.redis_server import RedisServer, executable, free_port

MASTER = "mymaster"
_AGREED_TIMEOUT_S = 60
_BUS_OFFSET = 10_000  # from a node's port to that of the cluster's own protocol
# How long one must be silent to be taken for dead. Much less, and a busy machine kills the living.
_SILENCE_MS = 1500


def until(is_so: Callable[[], bool], what: str) -> None:
    """Poll, since a process outside has no event to wait for."""
    deadline = time.monotonic() + _AGREED_TIMEOUT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError(f"after {_AGREED_TIMEOUT_S} s still not: {what}")
        time.sleep(0.02)


def ask(server: RedisServer, *words: str | int, **options: Any) -> Any:
    """One command's answer."""
    with Redis(port=server.port, decode_responses=True, protocol=2, **options) as client:
        return client.execute_command(*words)


class RedisCluster:
    """A node for each master, and after them one replica of each if that is asked for."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        masters: int,
        replicas: int = 0,
        is_tls: bool = False,
        program: str | None = None,
    ) -> None:
        self._tls_ports = [_node_port() for _ in range(masters + replicas)] if is_tls else []
        self.nodes = [
            RedisServer(
                folder / str(number), "--cluster-enabled", "yes", "--cluster-node-timeout", str(_SILENCE_MS),
                # A lost node must not take the slots of the others with it.
                "--cluster-require-full-coverage", "no",
                *(("--tls-port", str(self._tls_ports[number])) if is_tls else ()),
                *arguments, port=_node_port(), program=program,
            )
            for number in range(masters + replicas)
        ]  # fmt: skip
        self.masters = self.nodes[:masters]
        first = 0
        for number, node in enumerate(self.masters, 1):
            last = REDIS_CLUSTER_HASH_SLOTS * number // masters
            ask(node, "CLUSTER ADDSLOTS", *range(first, last))
            ask(node, "CLUSTER SET-CONFIG-EPOCH", number)
            first = last
        for node in self.nodes[1:]:
            ask(node, "CLUSTER MEET", "127.0.0.1", self.nodes[0].port)
        until(lambda: all(self._knows_all(node) for node in self.nodes), "all nodes know of each other")
        for number in range(masters, masters + replicas):
            ask(self.nodes[number], "CLUSTER REPLICATE", self._id(self.nodes[number - masters]))
        until(lambda: all(self.info(node)["cluster_state"] == "ok" for node in self.nodes), "the cluster is up")
        until(lambda: all(map(follows, self.nodes[masters:])), "the replicas are in step")

    def _knows_all(self, node: RedisServer) -> bool:
        return self.info(node)["cluster_known_nodes"] == str(len(self.nodes))

    @staticmethod
    def info(node: RedisServer) -> dict[str, str]:
        answer: dict[str, str] = ask(node, "CLUSTER INFO")
        return answer

    @property
    def addresses(self) -> str:
        return ",".join(f"127.0.0.1:{node.port}" for node in self.masters)

    @property
    def url(self) -> str:
        if self._tls_ports:
            return f"rediss+cluster://127.0.0.1:{self._tls_ports[0]}"
        return f"redis+cluster://{self.addresses}"

    def slots(self, node: RedisServer) -> set[int]:
        """Those that a node has by its own account."""
        ranges: list[Any] = ask(node, "CLUSTER SLOTS")
        mine = (its for its in ranges if its[2][1] == node.port)
        return {slot for first, last, *_ in mine for slot in range(first, last + 1)}

    def owner(self, slot: int) -> RedisServer:
        return next(node for node in self.nodes if node.process.poll() is None and slot in self.slots(node))

    def begin_moving(self, slot: int, target: RedisServer) -> None:
        """From now on the slot's node says ASK of keys that it doesn't have."""
        source = self.owner(slot)
        ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", self._id(source))
        ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", self._id(target))

    def move_keys(self, slot: int, target: RedisServer, *, count: int = 1000) -> int:
        """Move so many keys of a slot, with what is in them; returns how many there were."""
        source = self.owner(slot)
        names = ask(source, "CLUSTER GETKEYSINSLOT", slot, count)
        if names:
            ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)
        return len(names)

    def end_moving(self, slot: int, target: RedisServer) -> None:
        """From now on the slot's last node says MOVED."""
        source = self.owner(slot)
        for node in (target, source):
            ask(node, "CLUSTER SETSLOT", slot, "NODE", self._id(target))

    @staticmethod
    def _id(node: RedisServer) -> str:
        return str(ask(node, "CLUSTER MYID"))

    def flush(self) -> None:
        for node in self.masters:
            ask(node, "FLUSHALL")

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


class RedisSentinels:
    """A master, its replicas, and the sentinels that watch over them."""

    def __init__(self, folder: Path, *lines: str, replicas: int, sentinels: int, program: str | None = None) -> None:
        self.master = RedisServer(folder / "master", program=program)
        following = ("--replicaof", "127.0.0.1", str(self.master.port))
        self.replicas = [
            RedisServer(folder / f"replica-{number}", *following, program=program) for number in range(replicas)
        ]
        quorum = sentinels // 2 + 1
        watched = (
            f"sentinel monitor {MASTER} 127.0.0.1 {self.master.port} {quorum}",
            f"sentinel down-after-milliseconds {MASTER} {_SILENCE_MS}",
            f"sentinel failover-timeout {MASTER} 5000",
            *lines,
        )
        until(lambda: all(map(follows, self.replicas)), "the replicas are in step")
        self.sentinels = [
            Sentinel(folder / f"sentinel-{number}", *watched, program=program) for number in range(sentinels)
        ]
        until(lambda: all(map(self._knows_all, self.sentinels)), "the sentinels know of each other and the replicas")

    def _knows_all(self, sentinel: RedisServer) -> bool:
        state = ask(sentinel, "SENTINEL MASTER", MASTER)
        return bool(
            state["num-slaves"] == len(self.replicas) and state["num-other-sentinels"] == len(self.sentinels) - 1
        )

    @property
    def addresses(self) -> str:
        return ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)

    @property
    def url(self) -> str:
        return f"redis+sentinel://{self.addresses}/{MASTER}"

    def kill(self) -> None:
        for server in (*self.sentinels, *self.replicas, self.master):
            server.kill()


class Sentinel(RedisServer):
    """The same program in its other role, which writes what it learns into its configuration file."""

    def __init__(self, folder: Path, *lines: str, program: str | None = None) -> None:
        folder.mkdir()
        self.port = free_port()
        self._log = folder / "sentinel.log"
        settings = (f"port {self.port}", "bind 127.0.0.1", f"dir {folder}", f"logfile {self._log}", *lines)
        (folder / "sentinel.conf").write_text("\n".join(settings))
        self._command = [executable(program), str(folder / "sentinel.conf"), "--sentinel"]
        self.process = self._start()


def follows(server: RedisServer) -> bool:
    """Whether it is a replica and has all of its master."""
    return bool(ask(server, "INFO", "replication").get("master_link_status") == "up")


def _node_port() -> int:
    """A free port whose neighbour for the cluster's own protocol is free, too."""
    while True:
        port = free_port()
        if port + _BUS_OFFSET > 65535:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + _BUS_OFFSET))
            except OSError:
                continue
            return port
