"""How much metrics, the access log and traces reduce hit throughput.

Takes turns between four proxies, pinned as in `bench.paths`: one without metrics and access log, one with the default
settings, and two with traces, of 1 % of the requests and of all. The collector shares the core of the load.

    python -m bench.cost [--seconds 3] [--rounds 5]
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bench import wrk
from bench.servers import LOAD_CORE, PROXY, Server, process, proxy_server
from tests.support.redis_server import free_port

ROWS = {1: 32, 16: 8}  # items: connections
SILENT = """
from proxy.telemetry import counters
from proxy.telemetry.model_counters import ModelCounters
counters.CounterChild.inc = counters.HistogramChild.observe = lambda self, *_: None
ModelCounters.count_hit = lambda self, **_: None
from proxy.cli.commands import main
main()
"""
COLLECTOR = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Collector)
print("Ctrl-C ends it")
server.serve_forever()
"""


_MEMORY = ("--store", "memory:", "--memory", "2GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3, help="length of one run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each; the median is shown")
    given = parser.parse_args()
    wrk.require_tools()
    silent_program = (sys.executable, "-c", SILENT)
    collector_port = free_port()
    with (
        proxy_server(*_MEMORY) as proxy,
        proxy_server(*_MEMORY, "--log-requests", "no", program=silent_program) as silent,
        process([sys.executable, "-c", COLLECTOR, str(collector_port)], core=LOAD_CORE),
        tracing_proxy(collector_port, "0.01") as some,
        tracing_proxy(collector_port, "1") as every,
    ):
        print(f"{'items':>5} {'silent':>8} {'as it is':>8} {'ratio':>6}   aim 0.90; traces of 1 %, of all")
        for items, connections in ROWS.items():
            sent = wrk.Requests(items=items, encoding="base64")
            servers = [silent, proxy, some, every]
            for server in servers:
                wrk.fill(server, items, "base64")
            before, after, *traced = wrk.median_rates(
                servers, sent, rounds=given.rounds, connections=connections, seconds=given.seconds
            )
            ratios = "".join(f" {each / after:>6.3f}" for each in traced)
            print(f"{items:>5} {before:>8.0f} {after:>8.0f} {after / before:>6.3f} {ratios}", flush=True)


@contextmanager
def tracing_proxy(collector_port: int, ratio: str) -> Iterator[Server]:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector_port}",
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": ratio,
    }
    program = ["env", *(f"{name}={value}" for name, value in variables.items()), *PROXY]
    with proxy_server(*_MEMORY, "--traces", "otlp", program=program) as server:
        yield server


if __name__ == "__main__":
    main()
