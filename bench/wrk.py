"""Requests by wrk, whose texts are made in wrk itself: text number n is `WORDS` and "#n"."""

import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from bench.servers import LOAD_CORE, Server

_BATCH = 256
MODEL = "demo"
WORDS = " ".join(random.Random(1).choices(["vector", "index", "query", "token", "shard", "cache", "batch"], k=60))
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer sk-bench"}
_DONE = """
done = function(summary, latency, requests)
  local errors = summary.errors
  local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("bad %d requests %d us %d\\n", bad, summary.requests, summary.duration))
end
"""
_REQUEST = """
local fields = {{ {fields} }}
local words, tail = '{words} #', '"],"encoding_format":"{encoding}"}}'
local next = {first}
request = function()
  local texts = {{}}
  for n = 1, {items} do
    texts[n] = words .. {number}
    next = next + 1
  end
  {own_id}
  return wrk.format("POST", nil, fields, '{{"model":"{model}","input":["' .. table.concat(texts, '","') .. tail)
end
"""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What wrk sends: requests of ``items`` texts, from number ``first`` on.

    ``known``: None for texts that never repeat, 0 for a request that does, or the number of texts to choose from.
    """

    items: int
    encoding: str
    known: int | None = 0
    first: int = 0
    has_own_id: bool = False

    def script(self) -> str:
        number = {None: "next", 0: f"({self.first} + n)"}.get(self.known, f"math.random({self.known})")
        return _DONE + _REQUEST.format(
            fields=", ".join(f'["{name}"] = "{value}"' for name, value in HEADERS.items()),
            own_id='fields["X-Request-Id"] = string.format("%d-%d", next, math.random(1e9))' if self.has_own_id else "",
            words=WORDS,
            encoding=self.encoding,
            first=self.first,
            items=self.items,
            number=number,
            model=MODEL,
        )


@dataclass(frozen=True)
class Rate:
    requests_per_s: float
    cpu_us: float  # of the server, for one request


def require_tools() -> None:
    for tool, package in (("wrk", "wrk"), ("taskset", "util-linux")):
        if not shutil.which(tool):
            sys.exit(f"This benchmark needs {tool}: apt install {package}")


def load(server: Server, sent: Requests, *, connections: int, seconds: float, core: str | None = LOAD_CORE) -> Rate:
    """Send requests for so long; exits if one fails."""
    pinned = [] if core is None else ["taskset", "-c", core]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(sent.script())
        script.flush()
        command = [*pinned, "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
        before_s = server.cpu_s()
        shown = subprocess.run([*command, "-s", script.name, server.url], capture_output=True, text=True, check=True)
        used_s = server.cpu_s() - before_s
    match = re.search(r"bad 0 requests (\d+) us (\d+)", shown.stdout)
    if not match:
        sys.exit(f"some requests failed:\n{shown.stdout}")
    requests, duration_us = map(int, match.groups())
    if not requests:
        sys.exit(f"no request ended within {seconds} s: give it more with --seconds")
    return Rate(requests * 1e6 / duration_us, used_s * 1e6 / requests)


def median_rates(
    servers: Sequence[Server],
    sent: Requests,
    *,
    rounds: int,
    connections: int,
    seconds: float,
    core: str | None = LOAD_CORE,
) -> list[float]:
    """The requests a second that each server responds to. They take turns."""
    runs = [
        [load(server, sent, connections=connections, seconds=seconds, core=core).requests_per_s for server in servers]
        for _ in range(rounds)
    ]
    return [statistics.median(rates) for rates in zip(*runs, strict=True)]


def body_of(numbers: Sequence[int], encoding: str) -> bytes:
    """The body that the script makes of these texts."""
    texts = [f"{WORDS} #{number}" for number in numbers]
    return orjson.dumps({"model": MODEL, "input": texts, "encoding_format": encoding})


def post(server: Server, body: bytes) -> str:
    """One request; returns its X-Cache."""
    request = urllib.request.Request(server.url, body, HEADERS)  # noqa: S310
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        response.read()
        return str(response.headers["X-Cache"])


def fill(server: Server, count: int, encoding: str) -> None:
    """Send the texts 1 to ``count``, and some more, so that they are cached."""
    for first in range(1, count + 1, _BATCH):
        post(server, body_of(range(first, first + _BATCH), encoding))
