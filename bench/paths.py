"""CPU time of the proxy on each path of a request, as a multiple of bare aiohttp's for an 8 kB response.

The server is pinned to core 0, the load (wrk) and the upstream to core 1. The runs of a row take turns with runs of the
bare server, and the medians are compared: absolute figures drift with the machine, ratios much less.

    python -m bench.paths [--rows fresh,miss/1/base64] [--seconds 1] [--rounds 3] [--workers 1]

``repeat``: the same request. ``fresh``: a request that was not sent before, for known items. ``fresh-id``: with an
X-Request-Id of its own as well. ``cold-…``: from the store, with a memory tier that holds next to nothing. ``miss``:
items that were never requested.
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import wrk
from bench.servers import LOAD_CORE, SERVER_CORE, Server, bare_server, proxy_server, upstream_server
from tests.support.redis_server import RedisServer

KNOWN = 20_000  # texts in the cache
BARE = wrk.Requests(items=1, encoding="base64")
BARE_CONNECTIONS = 32
_FIRST_NEW = itertools.count(10**9, 10**7)  # numbers of texts that were never sent; distinct in each run


@dataclass(frozen=True)
class Row:
    path: str
    items: int
    encoding: str
    aim: float | None = None  # multiple of bare aiohttp's CPU time, for an item
    peer: float | None = None  # the fastest compiled peer's multiple, measured in the same way on another day

    @property
    def name(self) -> str:
        return f"{self.path}/{self.items}/{self.encoding}"

    @property
    def connections(self) -> int:
        return {1: 32, 16: 8, 64: 4}.get(self.items, 2)


ROWS = [
    Row("repeat", 1, "base64", 0.8, 1.7),
    Row("repeat", 16, "base64"),
    Row("repeat", 256, "base64"),
    Row("repeat", 1, "float"),
    Row("repeat", 16, "float"),
    Row("repeat", 256, "float"),
    Row("fresh", 1, "base64", 1.4, 1.49),
    Row("fresh-id", 1, "base64", 1.4, 1.49),
    Row("fresh", 64, "base64", 0.14, 0.85),
    Row("fresh", 256, "base64", 0.11, 0.89),
    Row("fresh", 1, "float", 1.5, 2.43),
    Row("cold-redis", 1, "base64", 2.0, 2.18),
    Row("cold-redis", 64, "base64", 0.30, 1.27),
    Row("cold-redis", 64, "float", 1.0, 2.48),
    Row("cold-sqlite", 1, "base64", 2.3),
    Row("cold-sqlite", 64, "base64", 0.38),
    Row("miss", 1, "base64", 2.8, 3.09),
    Row("miss", 64, "base64", 0.40, 1.67),
    Row("miss", 256, "base64", 0.33, 1.60),
    Row("miss", 1, "float", 4.0, 5.8),
    Row("miss", 64, "float", 1.4, 4.3),
    Row("miss", 256, "float", 1.3, 5.0),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=1, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each row; the median is shown")
    parser.add_argument("--rows", default="", help="only those whose names begin like one of these")
    parser.add_argument("--workers", type=int, default=1, help="of the proxy; more than one share all cores")
    given = parser.parse_args()
    wrk.require_tools()
    rows = [row for row in ROWS if row.name.startswith(tuple(given.rows.split(",")))]
    if not rows:
        parser.error(f"no row begins like {given.rows!r}; the rows are {', '.join(row.name for row in ROWS)}")
    heading = f"{'path/items/encoding':22} {'requests/s':>10} {'CPU us':>8} {'bare us':>8}"
    print(f"{heading} {'an item, of bare':>17} {'aim':>6} {'Go peer':>8}")
    with bare_server() as bare, upstream_server() as upstream:
        for (path, encoding), group in itertools.groupby(rows, lambda row: (row.path, row.encoding)):
            with proxy_for(path, upstream, given.workers) as proxy:
                fill(proxy, path, encoding)
                for row in group:
                    measure(row, bare, proxy, given)


def measure(row: Row, bare: Server, proxy: Server, given: argparse.Namespace) -> None:
    core = LOAD_CORE if given.workers == 1 else None
    bare_us, ours = [], []
    for _ in range(given.rounds):
        bare_us.append(wrk.load(bare, BARE, connections=BARE_CONNECTIONS, seconds=given.seconds).cpu_us)
        sent = requests_of(row)
        ours.append(wrk.load(proxy, sent, connections=row.connections, seconds=given.seconds, core=core))
    base_us = statistics.median(bare_us)
    cpu_us = statistics.median(rate.cpu_us for rate in ours)
    rate = statistics.median(rate.requests_per_s for rate in ours)
    of_bare = cpu_us / base_us / row.items
    print(
        f"{row.name:22} {rate:>10.0f} {cpu_us:>8.1f} {base_us:>8.1f} {of_bare:>17.3f}"
        f" {row.aim or '-':>6} {row.peer or '-':>8}",
        flush=True,
    )


def requests_of(row: Row) -> wrk.Requests:
    known = {"repeat": 0, "miss": None}.get(row.path, KNOWN)
    return wrk.Requests(
        items=row.items,
        encoding=row.encoding,
        known=known,
        first=next(_FIRST_NEW) if known is None else 0,
        has_own_id=row.path == "fresh-id",
    )


@contextmanager
def proxy_for(path: str, upstream: str, workers: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder, store_for(path, Path(folder)) as store:
        memory = "1MiB" if path.startswith("cold") else "2GiB"
        flags = ["--store", store, "--memory", memory, "--store-limit", "20GiB", "--workers", str(workers)]
        with proxy_server(*flags, upstream=upstream, core=SERVER_CORE if workers == 1 else None) as proxy:
            yield proxy


@contextmanager
def store_for(path: str, folder: Path) -> Iterator[str]:
    if path == "cold-redis":
        server = RedisServer(folder)
        try:
            yield server.url
        finally:
            server.kill()
    else:
        yield f"sqlite:///{folder}/cache.db" if path == "cold-sqlite" else "memory:"


def fill(proxy: Server, path: str, encoding: str) -> None:
    if path == "miss":
        return
    passes = 2 if encoding == "float" else 1  # the numbers' text is made when it is first needed
    for _ in range(passes):
        wrk.fill(proxy, max(row.items for row in ROWS) if path == "repeat" else KNOWN, encoding)


if __name__ == "__main__":
    main()
