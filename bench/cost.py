"""How much metrics, the access log and traces reduce hit throughput.

Takes turns between four proxies, pinned as in `bench.hot`: one without metrics and access log, one with the default
settings, and two with traces, of 1 % of the requests and of all. The collector shares the core of the load.

    python -m bench.cost [--seconds 3] [--rounds 5]
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import hot

ROWS = [hot.ROWS[0], hot.ROWS[2]]
SILENT = """
from proxy.telemetry import counters
counters.CounterChild.inc = counters.HistogramChild.observe = lambda self, *_: None
from proxy.cli.commands import main
main()
"""
COLLECTOR = f"""
import os
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

os.sched_setaffinity(0, [{hot.LOAD_CORE}])
server = ThreadingHTTPServer(("127.0.0.1", 18096), Collector)
print("Ctrl-C ends it")
server.serve_forever()
"""


@contextmanager
def silent_proxy() -> Iterator[str]:
    command = [sys.executable, "-c", SILENT, "serve", "--port", "18094", "--admin-port", "18095"]
    with hot.process([*command, "--store", "memory:", "--memory", "2GiB", "--log-requests", "no"]):
        yield "http://127.0.0.1:18094/v1/embeddings"


@contextmanager
def tracing_proxy(port: int, ratio: str) -> Iterator[str]:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:18096",
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": ratio,
    }
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, "-m", "proxy", "serve"]
    ports = ["--port", str(port), "--admin-port", "0"]
    with hot.process([*command, *ports, "--store", "memory:", "--memory", "2GiB", "--traces", "otlp"]):
        yield f"http://127.0.0.1:{port}/v1/embeddings"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3, help="length of one run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each; the median is shown")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        hot.proxy_server() as proxy,
        silent_proxy() as silent,
        hot.process([sys.executable, "-c", COLLECTOR]),
        tracing_proxy(18097, "0.01") as some,
        tracing_proxy(18098, "1") as every,
    ):
        print(
            f"{'items':>5} {'encoding':8} {'silent':>8} {'as it is':>8} {'ratio':>6}   aim 0.90; traces of 1 %, of all"
        )
        for row in ROWS:
            script = hot.write_script(row, Path(folder))
            runs: dict[str, list[float]] = {silent: [], proxy: [], some: [], every: []}
            for url in runs:
                hot.fill(url, row)
            for _ in range(given.rounds):
                for url, counts in runs.items():
                    counts.append(hot.load(url, script, row.connections, given.seconds))
            before, after, *traced = (statistics.median(counts) for counts in runs.values())
            ratios = "".join(f" {each / after:>6.3f}" for each in traced)
            print(
                f"{row.items:>5} {row.encoding:8} {before:>8.0f} {after:>8.0f} {after / before:>6.3f} {ratios}",
                flush=True,
            )


if __name__ == "__main__":
    main()
