"""What the ledger adds to the CPU time of a hit: proxies that tell clients apart against the same that do not.

Each gets a few hundred hits over the wire and then the other one, and so on: what slows the machine slows both. Two
processes of the same program differ, too, by some percent, so that they are started several times. Shown are the median
of the ratios of neighbors, and the least and the greatest median of a start.

    python -m bench.ledger_cost [--starts 8] [--rounds 30] [--by labels,keys] [--kinds same,items,others,ids]
"""

import argparse
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from bench.servers import LOAD_CORE, Server, proxy_server
from bench.wrk import HEADERS, body_of, fill

CONNECTIONS, TURNS = 16, 25  # of one run: each connection sends a request a turn
TEXTS = 200  # that are cached
# The same command without a ledger: what else client keys cost was there before it.
OFF = """
from proxy.ledger import ledger
made = ledger.Ledger.__init__
ledger.Ledger.__init__ = lambda self, *, is_on=True, max_clients=None: made(self, is_on=False, max_clients=max_clients)
from proxy.cli.commands import main
main()
"""
_MEMORY = ("--store", "memory:", "--memory", "512MiB")
_ENVIRONMENT = ("env", f"LABELS={'5' * 32}", "UPSTREAM_KEY=held")


class Hits:
    """Requests of one kind to one server, over connections that stay open."""

    def __init__(self, server: Server, kind: str) -> None:
        self._pid = server.pid
        self._requests = list(_requests(kind))
        port = int(server.url.split(":")[2].partition("/")[0])
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
        self._sent = 0

    def cpu_us(self) -> float:
        """The server's CPU time for one of them."""
        before_ns = _cpu_ns(self._pid)
        for _ in range(TURNS):
            for each in self._sockets:
                each.sendall(self._requests[self._sent % len(self._requests)])
                self._sent += 1
            for each in self._sockets:
                _read_hit(each)
        return (_cpu_ns(self._pid) - before_ns) / (TURNS * CONNECTIONS) / 1000

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def _cpu_ns(pid: int) -> int:
    """Of all its threads, to the nanosecond: https://docs.kernel.org/scheduler/sched-stats.html"""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def _requests(kind: str) -> Iterator[bytes]:
    """For "others" texts that are cached, one after the other; for "ids" an ID for each request."""
    for number in range(TEXTS):
        items = {"items": range(1, 17), "others": range(number + 1, number + 2)}.get(kind, range(1, 2))
        body = body_of(items, "base64")
        fields = HEADERS | {"Host": "127.0.0.1", "Content-Length": str(len(body))}
        if kind == "ids":
            fields |= {"X-Request-Id": f"{number:032x}"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        yield f"POST /v1/embeddings HTTP/1.1\r\n{head}\r\n".encode() + body


def _read_hit(connection: socket.socket) -> None:
    received = bytearray(connection.recv(262_144))
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or b"X-Cache: HIT" not in head:
        sys.exit(f"not a hit: {head[:200]!r}")
    left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]) - len(body)
    while left:
        left -= len(connection.recv(262_144))


@contextmanager
def pair(flags: Sequence[str]) -> Iterator[tuple[Server, Server]]:
    """Without the ledger, and with it."""
    with (
        proxy_server(*_MEMORY, *flags, program=[*_ENVIRONMENT, sys.executable, "-c", OFF]) as before,
        proxy_server(*_MEMORY, *flags, program=[*_ENVIRONMENT, sys.executable, "-m", "proxy"]) as after,
    ):
        for server in (before, after):
            fill(server, TEXTS, "base64")
        yield before, after


def ratios_of(servers: tuple[Server, Server], kind: str, rounds: int) -> list[float]:
    before, after = (Hits(server, kind) for server in servers)
    for hits in (before, after):
        hits.cpu_us()  # from now on the requests are known
    ratios = []
    for number in range(rounds):
        first, second = (before, after) if number % 2 else (after, before)
        used = {id(hits): hits.cpu_us() for hits in (first, second)}
        ratios.append(used[id(after)] / used[id(before)])
    for hits in (before, after):
        hits.close()
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=8, help="how often the proxies are started")
    parser.add_argument("--rounds", type=int, default=30, help="runs of each after a start")
    parser.add_argument("--by", default="labels,keys", help="how clients are told apart")
    parser.add_argument("--kinds", default="same,items,others,ids", help="of hits")
    given = parser.parse_args()
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "clients"
        keys.write_text(f"bench sha256:{sha256(b'sk-bench').hexdigest()} 2026-01-01\n")
        flags = {
            "labels": ("--client-labels-key-env", "LABELS"),
            "keys": ("--client-keys", str(keys), "--upstream-key-env", "UPSTREAM_KEY"),
        }
        print("with : without the ledger, CPU time of a hit; aim 1.020")
        for by in given.by.split(","):
            found: dict[str, list[list[float]]] = {kind: [] for kind in given.kinds.split(",")}
            for _ in range(given.starts):
                with pair(flags[by]) as servers:
                    for kind, of_starts in found.items():
                        of_starts.append(ratios_of(servers, kind, given.rounds))
            for kind, of_starts in found.items():
                medians = sorted(map(statistics.median, of_starts))
                all_of_them = statistics.median(ratio for ratios in of_starts for ratio in ratios)
                print(f"{by:>7} {kind:>7} {all_of_them:.3f} ({medians[0]:.3f} to {medians[-1]:.3f})", flush=True)


if __name__ == "__main__":
    main()
