"""The latency that the proxy adds to a request of a single client: direct against through the proxy, in turns.

The upstream responds at once, so the difference is the proxy's own. Each request has a text that was never sent. The
client and the upstream are pinned to core 1, the proxy to core 0.

    python -m bench.added [--requests 400] [--rounds 5] [--encoding base64]
"""

import argparse
import itertools
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from bench.servers import LOAD_CORE, proxy_server, upstream_server

WORDS = 60  # of a text
STORES = ("memory:", "sqlite:///{folder}/cache.db")
AIMS_MS = {"memory": 0.35, "sqlite": 0.6}
PEER_MS = {"memory": 0.3}  # the fastest compiled peer's, measured in the same way on another day


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400, help="of one round, direct and through the proxy")
    parser.add_argument("--rounds", type=int, default=5, help="the median of their medians is shown")
    parser.add_argument("--encoding", choices=("base64", "float"), default="base64")
    given = parser.parse_args()
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    numbers = itertools.count()
    heading = f"{'store':8} {'direct p50 ms':>14} {'through':>9} {'added p50':>10} {'added p90':>10}"
    print(f"{heading} {'aim':>6} {'Go peer':>8}")
    with tempfile.TemporaryDirectory() as folder, upstream_server() as upstream:
        for store in STORES:
            with proxy_server("--store", store.format(folder=Path(folder)), upstream=upstream) as proxy:
                direct, through = Client(f"{upstream}/embeddings"), Client(proxy.url)
                rounds = []
                for _ in range(given.rounds):
                    bodies = [body(next(numbers), given.encoding) for _ in range(2 * given.requests)]
                    rounds.append((timed(direct, bodies[::2]), timed(through, bodies[1::2])))
                show(store.partition(":")[0], rounds)


def show(name: str, rounds: Sequence[tuple[list[float], list[float]]]) -> None:
    def quantile_ms(tenth: int, way: int) -> float:
        return statistics.median(statistics.quantiles(both[way], n=10)[tenth - 1] for both in rounds) * 1000

    direct, through = quantile_ms(5, 0), quantile_ms(5, 1)
    late = quantile_ms(9, 1) - quantile_ms(9, 0)
    print(
        f"{name:8} {direct:>14.3f} {through:>9.3f} {through - direct:>10.3f} {late:>10.3f}"
        f" {AIMS_MS.get(name, '-'):>6} {PEER_MS.get(name, '-'):>8}",
        flush=True,
    )


def body(number: int, encoding: str) -> bytes:
    text = " ".join(f"word{(number * 7919 + i * 104_729) % 5_003}" for i in range(WORDS)) + f" #{number}"
    return orjson.dumps({"model": "demo", "input": text, "encoding_format": encoding})


class Client:
    """One kept connection, without an HTTP library, whose own time would be part of every figure."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 80))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer sk-bench\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()

    def post(self, content: bytes) -> None:
        """Send a request and read its response, which has a Content-Length."""
        self._socket.sendall(self._head + b"%d\r\n\r\n" % len(content) + content)
        received = self._socket.recv(2**18)
        while b"\r\n\r\n" not in received:
            received += self._socket.recv(2**18)
        head, _, begun = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"not a 200: {received[:500]!r}")
        missing = next(length_of(head)) - len(begun)
        while missing > 0:
            missing -= len(self._socket.recv(missing))


def length_of(head: bytes) -> Iterator[int]:
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            yield int(value)


def timed(client: Client, bodies: Sequence[bytes]) -> list[float]:
    """Seconds of each request."""
    warm = len(bodies) // 10
    for content in bodies[:warm]:
        client.post(content)
    took_s = []
    for content in bodies[warm:]:
        began_s = time.perf_counter()
        client.post(content)
        took_s.append(time.perf_counter() - began_s)
    return took_s


if __name__ == "__main__":
    main()
