"""The load of one replica on Redis when its memory tier has none of the requested items.

    python -m bench.replica [--seconds 5]

The replica is pinned to core 0. Redis and the load (wrk, with different texts in each request) use the other cores.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from redis import Redis

from bench import hot
from tests.support.redis_server import RedisServer

PORT = 18098
TEXTS = 8192  # 72 MB in memory, which has 1 MiB
BATCH = 256


@dataclass(frozen=True)
class Row:
    items: int
    connections: int


ROWS = [Row(1, 32), Row(16, 16), Row(128, 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="length of one run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        flags = ["--port", str(PORT), "--admin-port", str(PORT + 1), "--store", server.url, "--memory", "1MiB"]
        try:
            with hot.process([sys.executable, "-m", "proxy", "serve", *flags, "--log-requests", "no"]):
                url = f"http://127.0.0.1:{PORT}/v1/embeddings"
                for start in range(0, TEXTS, BATCH):
                    hot.post(url, body_of([text(number) for number in range(start, start + BATCH)]))
                client = Redis.from_url(server.url)
                heads = ("requests/s", "items/s", "MGET/s", "keys each", "MB/s", "connections")
                print("items " + " ".join(f"{head:>11}" for head in heads))
                for row in ROWS:
                    measure(row, url, client, Path(folder), given.seconds)
                client.close()
        finally:
            server.kill()


def text(number: int) -> str:
    return f"stored text {number}"


def body_of(texts: list[str]) -> bytes:
    return orjson.dumps({"model": "demo", "input": texts, "encoding_format": "base64"})


def measure(row: Row, url: str, client: "Redis", folder: Path, seconds: int) -> None:
    script = folder / "load.lua"
    script.write_text(
        "local n = 0\n"
        'wrk.headers["Content-Type"] = "application/json"\n'
        'wrk.headers["Authorization"] = "Bearer sk-bench"\n'
        "request = function()\n"
        "  local texts = {}\n"
        f"  for i = 1, {row.items} do\n"
        f"    n = (n + 37) % {TEXTS}\n"
        "    texts[i] = string.format('\"stored text %d\"', n)\n"
        "  end\n"
        '  local body = \'{"model":"demo","encoding_format":"base64","input":[\''
        " .. table.concat(texts, ',') .. ']}'\n"
        '  return wrk.format("POST", nil, nil, body)\n'
        "end\n"
        "done = function(summary)\n"
        "  io.write(string.format('bad %d\\n', summary.errors.status + summary.errors.read))\n"
        "end\n"
    )
    before = state(client)
    rate = hot.load(url, script, row.connections, seconds)
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
