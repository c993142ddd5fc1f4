"""Random scenarios: waves of requests as plain data, so that a failing one can be made smaller."""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from tests.support.oracle import Request
from tests.support.reference import Regime
from tests.support.reference_models import MODELS

CLIENTS = ("ann", "bob", "cat", "dan")
SCOPES = ("credential", "all", "owned")
_ORDINARY = ("plain", "alias", "reversed", "without-index", "without-zero", "extras", "echo", "created", "any-length")
_TENANTS = ("team", "solo", "guest", "limited", "expired", "")
_MARKS = (
    "BAD-307", "BAD-400", "BAD-403", "BAD-409", "BAD-413", "BAD-422", "BAD-424", "FLAG-246", "ERROR-IN-200", "NULL",
    "ZERO", "LONG",
)  # fmt: skip
# These may be everybody's, so that more than one in a wave may end the retries.
_CRASHES = ("BAD-500", "BAD-502", "CRASH-HEAD", "CRASH-BODY")
_KEY_FIELDS: Sequence[Mapping[str, Any]] = (
    {"dimensions": 8}, {"dimensions": 3}, {"dimensions": 0}, {"dimensions": None}, {"input_type": "query"},
    {"input_type": "passage"}, {"task": "a"}, {"truncate": True}, {"provider": {"order": ["a"]}},
)  # fmt: skip
_OTHER_FIELDS: Sequence[Mapping[str, Any]] = (
    {"drop_params": True}, {"timeout": 5}, {"stream": False}, {"stream": True}, {"keep_alive": "5m"},
    {"extra_body": {}}, {"late_chunking": False}, {"late_chunking": True}, {"x_context": "a"}, {"user": None},
    {"encoding_format": "hex"},
)  # fmt: skip
_ROUTING: Sequence[Mapping[str, str]] = (
    {"OpenAI-Organization": "a"}, {"X-Portkey-Metadata": '{"plan":"a"}'}, {"X-Portkey-Metadata": '{"plan":"b"}'},
    {"X-Tfy-Metadata": '{"plan":"a"}'}, {"X-Model-Deployment": "a"}, {"X-Litellm-Tags": "a"},
)  # fmt: skip
_NEUTRAL: Sequence[Callable[[int], Mapping[str, str]]] = (
    lambda n: {"X-Datadog-Tags": f"_dd.p.tid={n:x}"},
    lambda n: {"traceparent": f"00-{n:032x}-00f067aa0ba902b7-01"},
    lambda n: {"X-Forwarded-Client-Cert": f"Hash={n:x}"},
    lambda n: {"User-Agent": f"agent/{n % 3}"},
)
_TARGETS = ("/embeddings", "/v1/embeddings?api-version=1", "/openai/deployments/a/embeddings?api-version=1")
_DIRECTIVES = ("no-cache", "no-store", "only-if-cached", "max-age=0", "max-age=3600")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """Requests that are made at once, and what the upstream does meanwhile."""

    requests: tuple[Request, ...]
    regime: Regime
    holds: tuple[int, ...]  # turns of the loop for which each call waits, in rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The settings of a proxy, and the waves of requests to it."""

    settings: Mapping[str, Any]
    waves: tuple[Wave, ...]

    def __str__(self) -> str:
        lines = [f"A proxy with {dict(self.settings)}"]
        for wave in self.waves:
            lines += [
                f"  at once ({wave.regime.value}, held for {wave.holds} turns):",
                *map("    {!r}".format, wave.requests),
            ]
        return "\n".join(lines)

    @property
    def size(self) -> int:
        return sum(len(wave.requests) for wave in self.waves)

    def smaller(self) -> Iterator["Scenario"]:
        """Scenarios without one of the waves, or without some of the requests of one."""
        for at, wave in enumerate(self.waves):
            yield replace(self, waves=(*self.waves[:at], *self.waves[at + 1 :]))
            size = len(wave.requests)
            step = size // 2
            while step:
                for start in range(0, size, step):
                    rest = wave.requests[:start] + wave.requests[start + step :]
                    waves = (*self.waves[:at], replace(wave, requests=rest), *self.waves[at + 1 :])
                    yield replace(self, waves=waves)
                step //= 2


def random_scenario(rng: random.Random, *, waves: int, clients: Sequence[str] = CLIENTS) -> Scenario:
    settings = {
        "max_batch_items": rng.choice((None, None, 3, 8)),
        "batch_window_s": rng.choice((0.0, 0.01, 0.01)),
        "upstream_concurrency": rng.choice((64, 64, 4)),
    }
    models = [rng.choice(_ORDINARY), rng.choice(list(MODELS))]
    tenants = ["team", rng.choice(_TENANTS), rng.choice(_TENANTS)]
    return Scenario(settings=settings, waves=tuple(_wave(rng, clients, models, tenants) for _ in range(waves)))


def _wave(rng: random.Random, clients: Sequence[str], models: list[str], tenants: list[str]) -> Wave:
    models, tenants = rng.choices(models, k=rng.choice((1, 1, 2))), rng.choices(tenants, k=rng.choice((1, 1, 2, 4)))
    mix = _RequestMix(rng, clients, models, tenants)
    regime = Regime.NORMAL if rng.random() < 0.9 else rng.choice(list(Regime))
    requests = tuple(mix.request() for _ in range(rng.choice((2, 4, 8, 16, 32, 48))))
    return Wave(requests=requests, regime=regime, holds=tuple(rng.choices((0, 2, 20, 100), k=16)))


class _RequestMix:
    """Most requests of a wave say the same beside their items, or nothing would ever be merged."""

    def __init__(self, rng: random.Random, clients: Sequence[str], models: list[str], tenants: list[str]) -> None:
        self._rng = rng
        self._clients = clients
        self._models, self._tenants = models, tenants
        self._fields = dict(rng.choice(_KEY_FIELDS)) if rng.random() < 0.15 else {}
        self._headers = dict(rng.choice(_ROUTING)) if rng.random() < 0.1 else {}
        self._marks = rng.choices(_MARKS, k=2)
        self._crashes = rng.choice((0, 1, 1, 1, 4))  # how many texts may crash the upstream
        self._is_pure = rng.random() < 0.2  # nobody says anything but model and input

    def request(self) -> Request:
        rng = self._rng
        client = rng.choice(self._clients)
        headers = {"Content-Type": "application/json"} | self._headers
        if tenant := rng.choice(self._tenants):
            headers |= {"api-key": tenant} if tenant == "solo" else {"Authorization": f"Bearer {tenant}"}
        fields: dict[str, Any] = {"model": rng.choice(self._models), "input": self._input(client)} | self._fields
        target = "/v1/embeddings"
        if not self._is_pure:
            headers |= self._own_headers(client)
            fields |= self._own_fields(client)
            target = rng.choice(_TARGETS) if rng.random() < 0.05 else target
        leaves = rng.randrange(60) if rng.random() < 0.05 else None
        return Request(client, target, headers, self._written(fields), leaves)

    def _own_headers(self, client: str) -> dict[str, str]:
        rng, headers = self._rng, {}
        if rng.random() < 0.2:
            headers["X-Note"] = f"canary-{client}"
        if rng.random() < 0.1:
            headers |= rng.choice(_NEUTRAL)(rng.getrandbits(32))
        if rng.random() < 0.04:
            headers |= rng.choice(_ROUTING)
        if rng.random() < 0.1:
            headers["Cache-Control"] = rng.choice(_DIRECTIVES)
        return headers

    def _own_fields(self, client: str) -> dict[str, Any]:
        rng, fields = self._rng, dict[str, Any]()
        if rng.random() < 0.5:
            fields["encoding_format"] = rng.choice(("float", "float", "base64", "base64", "base64", None))
        if rng.random() < 0.15:
            fields["user"] = f"canary-{client}"
        if rng.random() < 0.04:
            fields |= rng.choice(_KEY_FIELDS)
        if rng.random() < 0.06:
            fields |= rng.choice(_OTHER_FIELDS)
        if rng.random() < 0.02:
            fields["metadata"] = {"of": f"canary-{client}"}
        return fields

    def _input(self, client: str) -> Any:
        rng = self._rng
        kind = rng.random()
        if kind < 0.55:
            return self._text(client)
        if kind < 0.9:
            texts = [self._text(client) for _ in range(rng.choice((1, 2, 2, 3, 5)))]
            return texts + rng.choices(texts, k=rng.choice((0, 0, 1)))
        if kind < 0.97:
            return rng.choice(([1, rng.randrange(9)], [[1, 2], [rng.randrange(9)]]))
        return rng.choice(("", [], ["", f"canary-{client}"], [f"canary-{client}", [1]], {"text": "a"}, None, "\u00e9:"))

    def _text(self, client: str) -> str:
        rng = self._rng
        text = rng.choice((f"canary-{client} {rng.randrange(5)}", f"common {rng.randrange(4)}"))
        if rng.random() < 0.08:
            return f"{text} {rng.choice(self._marks)}"
        if self._crashes and rng.random() < 0.1:
            self._crashes -= 1
            return f"{text} {rng.choice(_CRASHES)}"
        return text

    def _written(self, fields: dict[str, Any]) -> bytes:
        """JSON has many texts for one value."""
        match self._rng.randrange(20):
            case 0:
                return json.dumps(fields, indent=1).encode()
            case 1:
                return orjson.dumps(dict(reversed(fields.items())))
            case 2 if not self._is_pure:
                return b'{"input":"common 1",' + orjson.dumps(fields)[1:]  # of which some parsers keep the last
        return orjson.dumps(fields)
