"""The load of one replica on Redis when its memory tier has none of the requested items.

    python -m bench.replica [--seconds 5]

The replica is pinned to core 0. Redis and the load (wrk, with different texts in each request) use the other cores.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from bench import wrk
from bench.servers import Server, proxy_server
from tests.support.redis_server import RedisServer

TEXTS = 8192  # 50 MB in memory, which has 1 MiB


@dataclass(frozen=True)
class Row:
    items: int
    connections: int


ROWS = [Row(1, 32), Row(16, 16), Row(128, 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="length of one run")
    given = parser.parse_args()
    wrk.require_tools()
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        try:
            with proxy_server("--store", server.url, "--memory", "1MiB", "--log-requests", "no") as proxy:
                wrk.fill(proxy, TEXTS, "base64")
                client = Redis.from_url(server.url)
                heads = ("requests/s", "items/s", "MGET/s", "keys each", "MB/s", "connections")
                print("items " + " ".join(f"{head:>11}" for head in heads))
                for row in ROWS:
                    measure(row, proxy, client, given.seconds)
                client.close()
        finally:
            server.kill()


def measure(row: Row, proxy: Server, client: "Redis", seconds: int) -> None:
    before = state(client)
    sent_by_wrk = wrk.Requests(items=row.items, encoding="base64", known=TEXTS)
    rate = wrk.load(proxy, sent_by_wrk, connections=row.connections, seconds=seconds).requests_per_s
    after = state(client)
    reads = (after["reads"] - before["reads"]) / seconds
    sent = (after["sent"] - before["sent"]) / seconds / 1e6
    items = rate * row.items
    numbers = (rate, items, reads, items / reads, sent, after["connections"] - 1)
    print(f"{row.items:>5} " + " ".join(f"{number:>11.1f}" for number in numbers), flush=True)


def state(client: "Redis") -> dict[str, Any]:
    commands: Any = client.info("commandstats")
    totals: Any = client.info("all")
    return {
        "reads": commands.get("cmdstat_mget", {"calls": 0})["calls"],
        "sent": totals["total_net_output_bytes"],
        "connections": totals["connected_clients"],
    }


if __name__ == "__main__":
    main()
