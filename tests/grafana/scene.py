"""Five minutes of load on two proxies with one Redis, as a real Prometheus saw them.

At first most texts are new; then the upstream is slow and refuses some calls, and later Redis hangs.
"""

import http.server
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.grafana.live import LOOPBACK, Handler, Prometheus, connected, demo, listening, post
from tests.support.process import Process
from tests.support.redis_server import RedisServer, free_port

LENGTH_S = 300
# When, of the whole length, the upstream is slow, and when Redis hangs.
_SLOW = (0.5, 0.65)
_HANGING = (0.8, 0.86)
# How long a call takes on average, and the share of them that is refused when it is slow.
_CALL_S, _SLOW_CALL_S, _REFUSED = 0.06, 0.8, 0.1
_MODELS = {"text-embedding-3-small": 6, "multilingual-e5-large": 3, "bge-m3": 1}
_WORDS = ("vector", "index", "recall", "batch", "token", "query", "passage", "chunk", "cache", "latency", "corpus")
_CLIENTS = 4  # of each proxy


class _Upstream(http.server.ThreadingHTTPServer):
    """The demo upstream, as far away as a provider's is, and at times in trouble."""

    def __init__(self, demo_url: str) -> None:
        super().__init__(LOOPBACK, _Relay)
        self.demo_url = demo_url
        self.is_slow = False


class _Relay(Handler):
    server: _Upstream

    def reply(self, asked: bytes) -> tuple[int, bytes]:
        time.sleep(random.uniform(0.5, 1.5) * (_SLOW_CALL_S if self.server.is_slow else _CALL_S))
        if self.server.is_slow and random.random() < _REFUSED:
            return 429, b'{"error": {"message": "too many requests"}}'
        with connected(self.server.demo_url) as connection:
            connection.request("POST", "/v1/embeddings", asked, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()


@contextmanager
def played(folder: Path) -> Iterator[Prometheus]:
    """The Prometheus, once the five minutes are over."""
    with ExitStack() as stack:
        redis = RedisServer(folder)
        stack.callback(redis.kill)
        upstream = _Upstream(f"http://127.0.0.1:{stack.enter_context(demo(folder))}/v1")
        config = folder / "proxy.toml"
        config.write_text(
            f"""
            memory = "2MiB"
            revalidate = "10s"
            store = "{redis.url}"
            [prices]
            "text-*" = 20.0
            [[upstream]]
            name = "provider"
            base_url = "{stack.enter_context(listening(upstream))}/v1"
            """
        )
        proxies = [Process(folder, free_port(), "--config", str(config)) for _ in range(2)]
        for process in proxies:
            stack.callback(process.stop, signal.SIGTERM)
        admins = [process.admin_url.removeprefix("http://") for process in proxies]
        prometheus = stack.enter_context(Prometheus(folder, admins))
        is_over = threading.Event()
        threads = stack.enter_context(ThreadPoolExecutor(_CLIENTS * len(proxies)))
        stack.callback(is_over.set)
        clients = [
            threads.submit(_ask, process.base_url, random.Random(seed), is_over)
            for seed, process in enumerate(proxies * _CLIENTS)
        ]
        _play(upstream, redis)
        yield prometheus
        is_over.set()
        for client in clients:
            client.result()


def _play(upstream: _Upstream, redis: RedisServer) -> None:
    started = time.monotonic()

    def wait_until(share: float) -> None:
        time.sleep(max(0.0, started + share * LENGTH_S - time.monotonic()))

    wait_until(_SLOW[0])
    upstream.is_slow = True
    wait_until(_SLOW[1])
    upstream.is_slow = False
    wait_until(_HANGING[0])
    redis.process.send_signal(signal.SIGSTOP)
    wait_until(_HANGING[1])
    redis.process.send_signal(signal.SIGCONT)
    wait_until(1)


def _ask(base_url: str, draw: random.Random, is_over: threading.Event) -> None:
    """Few texts at first, all of them new; ever more come again."""
    started = time.monotonic()
    with connected(base_url) as connection:
        while not is_over.wait(draw.expovariate(8)):
            pool = 300 + 20 * (time.monotonic() - started)
            numbers = [int(draw.expovariate(5 / pool)) for _ in range(draw.choice((1, 1, 4, 16)))]
            texts = [f"{_WORDS[n % 11]} {_WORDS[n % 7]} of document {n} " + "lorem ipsum " * 40 for n in numbers]
            (model,) = draw.choices(list(_MODELS), list(_MODELS.values()))
            body: dict[str, Any] = {"model": model, "input": texts, "dimensions": 256}
            if draw.random() < 0.02:
                body |= draw.choice(({"truncate": "END"}, {"input": ""}, {"dimensions": 4097}))
            post(connection, "sk-load", body)
            # All it asks is stored, so that the upstream is asked now and then what the credential is worth.
            post(connection, "sk-again", {"model": "bge-m3", "input": "the same text"})
