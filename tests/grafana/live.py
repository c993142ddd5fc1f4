"""A Prometheus that scrapes three proxies to which everything happens that a dashboard has a panel for."""

import http.client
import http.server
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import xxhash
from redis import Redis

from tests.grafana.expressions import RULES
from tests.support.process import LoggedProcess, Process
from tests.support.redis_server import RedisServer, free_port

_HOW_TO_GET_IT = (
    "make test-grafana needs prometheus and promtool and did not find them in PATH. Get both with"
    " `apt install prometheus` or from https://prometheus.io/download, and run it again."
)
LOOPBACK = ("127.0.0.1", 0)
_START_TIMEOUT_S = 60.0
_REQUEST_TIMEOUT_S = 60.0
_POLL_S = 0.1
# Between rounds, so that a small machine has time left for Prometheus.
_PAUSE_S = 0.1
_TEXTS = 300  # of 6 KiB each, so that the memory tier, which has 1 MiB, is too small for them
_BATCH = 16
_SMALL_BYTES = 1000  # records of a few dimensions are smaller
_MODELS = ("demo", "gone", "rejected", "broken")


def find(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise RuntimeError(_HOW_TO_GET_IT)
    return path


class Prometheus:
    def __init__(self, folder: Path, targets: list[str]) -> None:
        self._port = free_port()
        config = folder / "prometheus.json"  # YAML is JSON's superset
        scrape = {"job_name": "embedding-proxy", "static_configs": [{"targets": targets}]}
        times = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        files = [str(path) for path in RULES]
        config.write_text(json.dumps({"global": times, "rule_files": files, "scrape_configs": [scrape]}))
        self._log = (folder / "prometheus.log").open("w")
        self._popen = subprocess.Popen(
            [
                find("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> "Prometheus":
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._popen.poll() is None:
            try:
                if self._get("/-/ready")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(_POLL_S)
        self.__exit__()
        raise RuntimeError(f"Prometheus did not start; its log: {Path(self._log.name).read_text()}")

    def __exit__(self, *_: object) -> None:
        self._popen.terminate()
        self._popen.wait()
        self._log.close()

    def get(self, path: str, **parameters: str) -> Any:
        """The ``data`` of an answer of the HTTP API, https://prometheus.io/docs/prometheus/latest/querying/api/."""
        status, body = self._get(f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        answer = json.loads(body)
        assert status == 200, answer
        return answer["data"]

    def _get(self, target: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


class Handler(http.server.BaseHTTPRequestHandler):
    """An upstream, but for what it answers."""

    protocol_version = "HTTP/1.1"

    def reply(self, asked: bytes) -> tuple[int, bytes]:
        """Status and body."""
        raise NotImplementedError

    def do_POST(self) -> None:
        status, body = self.reply(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("retry-after-ms", "20")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A test writes no access log."""


class _Misbehaving(Handler):
    """An upstream that fails for one model, answers 200 with nothing in it for another, and limits the rate of a third,
    of which it refuses every other call."""

    _calls = itertools.count()

    def reply(self, asked: bytes) -> tuple[int, bytes]:
        model = json.loads(asked)["model"]
        if model == "limited" and next(self._calls) % 2:
            return 200, b'{"object": "list", "data": [{"index": 0, "embedding": [1, 2, 3, 4]}], "model": "limited"}'
        statuses = {"rejected": 200, "limited": 429}
        return statuses.get(model, 500), b'{"object": "list", "data": []}'


@contextmanager
def listening(server: http.server.ThreadingHTTPServer) -> Iterator[str]:
    """Its URL, while a thread serves it."""
    with server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()


class Live:
    """A Prometheus, and the load on the proxies that it scrapes."""

    def __init__(self, prometheus: Prometheus, loads: Sequence["Future[None]"]) -> None:
        self.prometheus = prometheus
        self._loads = loads

    def poll(self, ask: Callable[[], bool], *, timeout_s: float) -> bool:
        """Whether ``ask`` said yes in time, while the load went on; what ended the load is raised."""
        deadline = time.monotonic() + timeout_s
        while not (said := ask()) and time.monotonic() < deadline:
            for load in self._loads:
                if load.done():
                    load.result()
            time.sleep(_POLL_S)
        return said


@contextmanager
def serving(folder: Path) -> Iterator[Live]:
    """The three proxies' metrics while they are under load.

    Two share a Redis, to which a forger writes, too; the third has a Redis that is not there. All have an upstream that
    works, one that is gone with another in its place, and one that misbehaves.
    """
    with ExitStack() as stack:
        redis = RedisServer(folder)
        stack.callback(redis.kill)
        config = folder / "proxy.toml"
        config.write_text(
            f"""
            memory = "1MiB"
            revalidate = "1s"
            canary = "1m"
            [prices]
            "demo*" = 0.02
            [budgets.tight]
            models = ["tight"]
            tokens = 20
            [[upstream]]
            name = "demo"
            base_url = "http://127.0.0.1:{stack.enter_context(demo(folder))}/v1"
            [[upstream]]
            name = "gone"
            base_url = "http://127.0.0.1:{free_port()}/v1"
            models = ["gone"]
            same_model = [{{ upstream = "demo", model = "demo" }}]
            [[upstream]]
            name = "misbehaving"
            base_url = "{stack.enter_context(listening(http.server.ThreadingHTTPServer(LOOPBACK, _Misbehaving)))}/v1"
            models = ["rejected", "broken", "limited"]
            """
        )
        proxies = {}
        os.environ["RECORD_KEY"] = "s" * 32
        stack.callback(os.environ.pop, "RECORD_KEY")
        for name, store in (("A", redis.url), ("B", redis.url), ("C", f"redis://127.0.0.1:{free_port()}/0")):
            arguments = ["--config", str(config), "--store", store, "--record-key-env", "RECORD_KEY"]
            arguments += ["--rate-limit-wait", "60s", "--client-labels-key-env", "RECORD_KEY"]
            proxies[name] = Process(folder, free_port(), *arguments)
            stack.callback(proxies[name].stop, signal.SIGTERM)
        base_urls = {name: process.base_url for name, process in proxies.items()}
        loads = stack.enter_context(_loads(base_urls, redis.url))
        admins = [process.admin_url.removeprefix("http://") for process in proxies.values()]
        yield Live(stack.enter_context(Prometheus(folder, admins)), loads)


@contextmanager
def demo(folder: Path) -> Iterator[int]:
    port = free_port()
    process = LoggedProcess(folder, [sys.executable, "-m", "proxy", "demo", "--port", str(port)], until="Ctrl-C")
    try:
        yield port
    finally:
        process.stop(signal.SIGTERM)


@contextmanager
def _loads(base_urls: Mapping[str, str], redis_url: str) -> Iterator[list["Future[None]"]]:
    """Requests until the block ends: of every kind to each proxy, and the forger's. Raises what ended one of them."""
    is_over = threading.Event()
    with ThreadPoolExecutor(len(base_urls) + 2) as threads:
        loads = [threads.submit(_load, base_url, name, is_over) for name, base_url in base_urls.items()]
        loads.append(threads.submit(_wait_for_limits, base_urls["A"], is_over))
        loads.append(threads.submit(_forge, [base_urls["A"], base_urls["B"]], redis_url, is_over))
        try:
            yield loads
        finally:
            is_over.set()
        for load in loads:
            load.result()


def _load(base_url: str, name: str, is_over: threading.Event) -> None:
    with connected(base_url) as connection:
        for number in itertools.count():
            if is_over.wait(_PAUSE_S):
                break
            for body in _requests(number, name):
                post(connection, "sk-load", body)
            # All it asks is stored, so that the proxy asks the upstream now and then what the credential is worth.
            post(connection, "sk-again", {"model": "demo", "input": "the same text"})
            # One proxy replaces what the others have in memory.
            post(connection, "sk-again", {"model": "demo", "input": "replaced"}, {"Cache-Control": "no-cache"})
            # More than a hundred requests in the time shown, none of them a hit, not even of what another proxy stored.
            for again in range(4):
                tags = {"X-Job-Tags": f"{name} {number} {again}"}
                post(connection, "sk-tags", {"model": "demo", "input": "the same text"}, tags)


def _wait_for_limits(base_url: str, is_over: threading.Event) -> None:
    """A load of its own, since each of its requests waits."""
    with connected(base_url) as connection:
        for number in itertools.count():
            if is_over.wait(_PAUSE_S):
                break
            post(connection, "sk-load", {"model": "limited", "input": f"waits {number}"})
            hurried = {"Prefer": "wait=0"}
            post(connection, "sk-load", {"model": "limited", "input": f"waits for nothing {number}"}, hurried)


def _forge(base_urls: Sequence[str], redis_url: str, is_over: threading.Event) -> None:
    """What one proxy has stored is forged and then asked of the other: once in each round."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(connected(base_url)) for base_url in base_urls)
        redis = stack.enter_context(Redis.from_url(redis_url))
        for number in itertools.count():
            if is_over.wait(_PAUSE_S):
                break
            # By its size the forger knows it among the others' records.
            body = {"model": "demo", "input": f"soon forged {number}", "dimensions": 4}
            post(first, "sk-load", body)
            for name in redis.scan_iter(match="embedding:*"):
                value = redis.get(name)
                if isinstance(value, bytes) and len(value) < _SMALL_BYTES:
                    tagged = value[:-24] + bytes(16)
                    redis.set(name, tagged + xxhash.xxh3_64_digest(tagged))
            post(second, "sk-load", body)


@contextmanager
def connected(base_url: str) -> Iterator[http.client.HTTPConnection]:
    host = base_url.removeprefix("http://").removesuffix("/v1")
    with closing(http.client.HTTPConnection(host, timeout=_REQUEST_TIMEOUT_S)) as connection:
        yield connection


def post(
    connection: http.client.HTTPConnection, key: str, body: dict[str, Any], more: Mapping[str, str] | None = None
) -> None:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **(more or {})}
    connection.request("POST", "/v1/embeddings", json.dumps(body), headers)
    connection.getresponse().read()


def _requests(number: int, name: str) -> Iterator[dict[str, Any]]:
    texts = [f"{name}: a text that comes again {(number * _BATCH + i) % _TEXTS}" for i in range(_BATCH)]
    for model in _MODELS:
        yield {"model": model, "input": f"{name}: a new text {number}"}
    yield {"model": "tight", "input": f"{name}: a text for which there is soon no budget {number}"}
    yield {"model": "demo", "input": texts}
    yield {"model": "demo", "input": [*texts, texts[0], f"{name}: another new text {number}"]}
    yield {"model": "demo", "input": "a field that nobody knows", "what_is_this": True}
    yield {"model": "demo", "input": "a stream is not cached", "stream": True}
    yield {"model": "demo", "input": f"too long a vector {number}", "dimensions": 4097}
