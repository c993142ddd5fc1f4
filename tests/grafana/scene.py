"""Five minutes of load on two proxies with one Redis, as a real Prometheus saw them.

At first most texts are new. Then the upstream is slow, refuses some calls and has other weights for one model, and
another upstream fails, whose model the first one serves, too. Later Redis hangs. The clients of the first proxy have
its keys and budgets; two of them never get a hit. Those of the second have their own keys.
"""

import http.server
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

from tests.grafana.live import LOOPBACK, Handler, Prometheus, connected, demo, listening, post
from tests.support.process import Process
from tests.support.redis_server import RedisServer, free_port

LENGTH_S = 300
# When, of the whole length, the upstream is slow and the other one fails, and when Redis hangs.
_SLOW = (0.5, 0.65)
_HANGING = (0.8, 0.86)
# How long a call takes on average, and the shares of those that are refused or have no vectors when it is slow.
_CALL_S, _SLOW_CALL_S, _REFUSED, _UNUSABLE = 0.06, 0.8, 0.1, 0.03
_MODELS = {"text-embedding-3-small": 6, "multilingual-e5-large": 3, "bge-m3": 1}
_WORDS = ("vector", "index", "recall", "batch", "token", "query", "passage", "chunk", "cache", "latency", "corpus")
_CLIENTS = 4  # of each proxy, besides those without hits
# The clients of the first proxy: how many requests a second each sends, about, and for how many seconds' texts.
_TEAMS = {"search": (7.0, 1.0), "recommender": (5.0, 1.5), "support-bot": (3.0, 0.5), "nightly-import": (3.0, 20.0)}
_WITHOUT_HITS = ("legacy-app", "notebooks")
_BUDGETS = """
[budgets.daily]
tokens = 300000
[budgets.import]
clients = ["nightly-*"]
tokens = 90000
"""
_DRIFTING = "bge-m3"
_HAS_FALLBACK = "multilingual-e5-large"
_SETTLED_WITHIN_S = 60.0
_KEY_ENV = "SCENE_UPSTREAM_KEY"
# An upstream for one model, which the other one serves while this one fails.
_GPU = f"""
[[upstream]]
name = "gpu"
base_url = "{{gpu_url}}/v1"
models = ["{_HAS_FALLBACK}"]
same_model = [{{{{ upstream = "provider", model = "{_HAS_FALLBACK}" }}}}]
"""


class _Upstream(http.server.ThreadingHTTPServer):
    """The demo upstream, as far away as a provider's is, and at times in trouble."""

    def __init__(self, demo_url: str) -> None:
        super().__init__(LOOPBACK, _Relay)
        self.demo_url = demo_url
        self.is_slow = self.is_down = False
        self.has_other_weights = False


class _Relay(Handler):
    server: _Upstream

    def reply(self, asked: bytes) -> tuple[int, bytes]:
        if self.server.is_down:
            return 503, b'{"error": {"message": "restarting"}}'
        time.sleep(random.uniform(0.5, 1.5) * (_SLOW_CALL_S if self.server.is_slow else _CALL_S))
        if self.server.is_slow and random.random() < _REFUSED:
            return 429, b'{"error": {"message": "too many requests"}}'
        if self.server.is_slow and random.random() < _UNUSABLE:
            return 200, b'{"object": "list", "data": []}'
        if self.server.has_other_weights:
            asked = _of_other_weights(asked)
        with connected(self.server.demo_url) as connection:
            connection.request("POST", "/v1/embeddings", asked, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()


def _of_other_weights(asked: bytes) -> bytes:
    """The demo's vector for another text is what other weights make of this one."""
    body = json.loads(asked)
    if body["model"] == _DRIFTING and body["input"]:
        given = [body["input"]] if isinstance(body["input"], str) else body["input"]
        body["input"] = ["now " + text for text in given]
    return json.dumps(body).encode()


@contextmanager
def played(folder: Path) -> Iterator[Prometheus]:
    """The Prometheus, once the five minutes are over."""
    with ExitStack() as stack:
        redis = RedisServer(folder)
        stack.callback(redis.kill)
        demo_url = f"http://127.0.0.1:{stack.enter_context(demo(folder))}/v1"
        upstream, gpu = _Upstream(demo_url), _Upstream(demo_url)
        urls = stack.enter_context(listening(upstream)), stack.enter_context(listening(gpu))
        stack.enter_context(mock.patch.dict(os.environ, {_KEY_ENV: "held"}))
        options = [_write_options(folder, *urls, redis.url, has_teams=has_teams) for has_teams in (True, False)]
        proxies = [Process(folder, free_port(), "--config", str(path)) for path in options]
        for process in proxies:
            stack.callback(process.stop, signal.SIGTERM)
        admins = [process.admin_url.removeprefix("http://") for process in proxies]
        prometheus = stack.enter_context(Prometheus(folder, admins))
        is_over = threading.Event()
        threads = stack.enter_context(ThreadPoolExecutor(_CLIENTS * len(proxies) + len(_WITHOUT_HITS)))
        stack.callback(is_over.set)
        teams, others = (process.base_url for process in proxies)
        clients = [
            *(threads.submit(_ask, teams, name, random.Random(name), is_over, *load) for name, load in _TEAMS.items()),
            *(threads.submit(_ask, others, "sk-load", random.Random(seed), is_over) for seed in range(_CLIENTS)),
            *(threads.submit(_ask_in_vain, teams, name, is_over) for name in _WITHOUT_HITS),
        ]
        _play(upstream, gpu, redis)
        yield prometheus
        is_over.set()
        for client in clients:
            client.result()


def settled(prometheus: Prometheus) -> int:
    """Unix time of a moment at which all was scraped. A busy machine misses a scrape now and then, and the pictures
    would show an instance that is down."""
    deadline = time.monotonic() + _SETTLED_WITHIN_S
    while time.monotonic() < deadline:
        now_s = int(time.time())
        if not prometheus.get("query", query="up == 0", time=str(now_s))["result"]:
            return now_s
        time.sleep(0.5)
    raise RuntimeError(f"in {_SETTLED_WITHIN_S:g} s there was no moment at which both proxies were scraped")


def _write_options(folder: Path, upstream_url: str, gpu_url: str, redis_url: str, *, has_teams: bool) -> Path:
    keys = folder / "clients"
    names = (*_TEAMS, *_WITHOUT_HITS)
    keys.write_text("".join(f"{name} sha256:{sha256(name.encode()).hexdigest()} 2026-01-01\n" for name in names))
    path = folder / ("teams.toml" if has_teams else "others.toml")
    path.write_text(
        f"""
        memory = "2MiB"
        revalidate = "10s"
        store = "{redis_url}"
        canary = "1m"
        {f'client_keys = "{keys}"' if has_teams else ""}
        [prices]
        "text-*" = 20.0
        {_BUDGETS if has_teams else ""}
        [[upstream]]
        name = "provider"
        base_url = "{upstream_url}/v1"
        {f'key_env = "{_KEY_ENV}"' if has_teams else ""}
        {"" if has_teams else _GPU.format(gpu_url=gpu_url)}
        """
    )
    return path


def _play(upstream: _Upstream, gpu: _Upstream, redis: RedisServer) -> None:
    started = time.monotonic()

    def wait_until(share: float) -> None:
        time.sleep(max(0.0, started + share * LENGTH_S - time.monotonic()))

    wait_until(_SLOW[0])
    upstream.is_slow = upstream.has_other_weights = gpu.is_down = True
    wait_until(_SLOW[1])
    upstream.is_slow = gpu.is_down = False
    wait_until(_HANGING[0])
    redis.process.send_signal(signal.SIGSTOP)
    wait_until(_HANGING[1])
    redis.process.send_signal(signal.SIGCONT)
    wait_until(1)


def _ask(
    base_url: str,
    key: str,
    draw: random.Random,
    is_over: threading.Event,
    requests_per_s: float = 8.0,
    new_texts: float = 1.0,
) -> None:
    """Few texts at first, all of them new; ever more come again, unless ``new_texts`` is many times as much."""
    started = time.monotonic()
    with connected(base_url) as connection:
        while not is_over.wait(draw.expovariate(requests_per_s)):
            pool = new_texts * (300 + 20 * (time.monotonic() - started))
            numbers = [int(draw.expovariate(5 / pool)) for _ in range(draw.choice((1, 1, 4, 16)))]
            texts = [f"{_WORDS[n % 11]} {_WORDS[n % 7]} of document {n} " + "lorem ipsum " * 40 for n in numbers]
            (model,) = draw.choices(list(_MODELS), list(_MODELS.values()))
            body: dict[str, Any] = {"model": model, "input": texts, "dimensions": 256}
            if draw.random() < 0.02:
                body |= draw.choice(({"truncate": "END"}, {"input": ""}, {"dimensions": 4097}))
            post(connection, key, body)
            # All it asks is stored, so that the upstream is asked now and then what the credential is worth.
            post(connection, "sk-again" if key == "sk-load" else key, {"model": _DRIFTING, "input": "the same text"})


def _ask_in_vain(base_url: str, key: str, is_over: threading.Event) -> None:
    """A field that nobody knows and streams, or a header that never repeats."""
    number = 0
    with connected(base_url) as connection:
        while not is_over.wait(0.7):
            number += 1
            body: dict[str, Any] = {"model": "multilingual-e5-large", "input": "a greeting", "dimensions": 256}
            if key == "legacy-app":
                more = {"stream": True} if number % 3 == 0 else {"request_tag": number}
                post(connection, key, body | more, {"User-Agent": "OpenAI/Python 1.99"})
            else:
                post(connection, key, body, {"User-Agent": "python-requests/2.32", "X-Route": str(number)})
