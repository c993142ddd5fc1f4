"""Runs scenarios against proxies in front of the reference upstream, and reports faults."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import ClientError, ClientSession, TCPConnector, web
from prometheus_client.samples import Sample
from yarl import URL

from proxy.app import Running, running
from proxy.config.settings import Settings, StoreSetting, UpstreamSetting
from tests.support.oracle import Oracle, Received, Request, fails_for_all
from tests.support.reference import HELD_KEY, Asked, Cut, Reference, Regime, Reply
from tests.support.scenarios import Scenario, Wave
from tests.support.scripted import Call, ScriptedUpstream
from tests.support.settings import settings_for

_HANGS_S = 60.0
_MAX_TOLD_CALLS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    category: str
    told: str  # the request, its response, the right one, and the calls upstream


@dataclass(kw_only=True)
class ReferenceServer:
    """The reference over HTTP. A call is answered once ``gate`` is open, after as many turns of the loop as the next of
    ``holds`` says."""

    reference: Reference
    regime: Regime = Regime.NORMAL
    holds: Sequence[int] = (0,)
    calls: list[tuple[Call, Reply]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def begin(self, regime: Regime, holds: Sequence[int] = (0,)) -> None:
        self.regime, self.holds = regime, holds
        self.calls.clear()

    def reply_to(self, call: Call) -> Reply:
        return self.reference.reply(asked_by(call), self.regime)

    async def __call__(self, call: Call) -> web.StreamResponse:
        reply = self.reply_to(call)
        self.calls.append((call, reply))
        for _ in range(self.holds[len(self.calls) % len(self.holds)]):
            await asyncio.sleep(0)
        await self.gate.wait()
        if reply.cut is None:
            return web.Response(status=reply.status, headers=reply.headers, body=reply.body)
        if reply.cut is Cut.IN_BODY:
            response = web.StreamResponse(headers=reply.headers)
            await response.prepare(call.request)
            await response.write(reply.body)
        assert call.request.transport is not None
        call.request.transport.close()
        return web.Response()


def asked_by(call: Call) -> Asked:
    """What a call asks of the reference."""
    headers = {name.lower(): value for name, value in call.headers.items()}
    return Asked(target=call.target, headers=headers, body=call.body)


@dataclass(kw_only=True)
class LoadRunner:
    """A kind of proxies: ``scope`` is one of `SCOPES`, ``fresh_store`` empties their store and says where it is."""

    session: ClientSession
    upstream: ScriptedUpstream
    server: ReferenceServer
    scope: str
    fresh_store: Callable[[], StoreSetting]
    replicas: int
    seen: Counter[str] = field(default_factory=Counter)  # of responses and calls upstream, by kind
    failed_before: int = 0  # requests of earlier waves, since the upstream last did what it was asked

    def settings(self, store: StoreSetting, changes: Mapping[str, Any]) -> Settings:
        key = HELD_KEY if self.scope == "owned" else None
        its = UpstreamSetting(name="reference", base_url=self.upstream.base_url, key=key)
        shares_all = self.scope == "all"
        # The reference relays what its upstream refuses.
        given = {"rate_limit_wait_s": 0.0} | dict(changes)
        return settings_for(self.upstream, upstream=its, store=store, shares_all=shares_all, **given)

    async def faults(self, scenario: Scenario) -> list[Fault]:
        """Run a scenario up to the first wave with a fault, and return its faults."""
        settings = self.settings(self.fresh_store(), scenario.settings)
        async with AsyncExitStack() as stack:
            proxies = [await stack.enter_async_context(running(settings)) for _ in range(self.replicas)]
            self.failed_before = 0
            for wave in scenario.waves:
                got = await self._run(wave, proxies)
                self.seen["merged"] += sum(_is_merged(call.body) for call, _ in self.server.calls)
                if faults := list(self._faults(wave, got)):
                    return faults
                failed = sum(each is not None and each.status >= 500 and each.status != 504 for each in got)
                fetched = sum(each is not None and each.header("X-Cache") in {"MISS", "PARTIAL"} for each in got)
                # A success restores the retry budget of its proxy.
                self.failed_before = failed + (0 if fetched > failed else self.failed_before)
        return []

    async def _run(self, wave: Wave, proxies: Sequence[Running]) -> list[Received | None]:
        self.server.begin(wave.regime, wave.holds)
        origins = [proxy.base_url.removesuffix("/v1") for proxy in proxies]
        sent = [self.send(origins[n % len(origins)], request) for n, request in enumerate(wave.requests)]
        async with asyncio.timeout(_HANGS_S):
            got = await asyncio.gather(*sent)
            # What clients that left have asked for is fetched all the same, and is not to meet the next wave.
            while any(sample.value for proxy in proxies for sample in _samples(proxy)):
                await asyncio.sleep(0)
        return got

    async def send(self, origin: str, request: Request) -> Received | None:
        return await send(self.session, origin, request)

    def _faults(self, wave: Wave, answers: Sequence[Received | None]) -> Iterator[Fault]:
        oracle = Oracle(reference=self.server.reference, owns_key=self.scope == "owned", regime=wave.regime)
        right = [oracle.expected(request) for request in wave.requests]
        failing = Counter(
            _model(request) for request, expected in zip(wave.requests, right, strict=True) if fails_for_all(expected)
        )
        for request, expected, got in zip(wave.requests, right, answers, strict=True):
            if got is None:
                self.seen["left"] += 1
                continue
            self.seen[got.header("X-Cache") or "own error"] += 1
            others = failing[_model(request)] - fails_for_all(expected) + self.failed_before
            if category := oracle.fault(request, got, expected, others_failing=others):
                told = f"{request!r}\n  right: {expected!r}\n  got:   {got!r}\n  calls upstream meanwhile:\n"
                yield Fault(category=category, told=told + self._calls())

    def _calls(self) -> str:
        lines = [
            f"    {call.headers.get('Authorization') or call.headers.get('api-key')} {call.body.decode()} -> "
            + str(reply.cut or reply.status)
            for call, reply in self.server.calls
        ]
        left_out = len(lines) - _MAX_TOLD_CALLS
        return "\n".join(lines[:_MAX_TOLD_CALLS] + ([f"    and {left_out} more"] if left_out > 0 else []))

    async def smallest(self, scenario: Scenario, category: str, *, tries: int) -> tuple[Scenario, str]:
        """The smallest scenario found that still has a fault of this category, and that fault."""
        told = ""
        while tries > 0:
            for smaller in scenario.smaller():
                tries -= 1
                same = [fault for fault in await self.faults(smaller) if fault.category == category]
                if same:
                    scenario, told = smaller, same[0].told
                    break
                if tries <= 0:
                    break
            else:
                break
        return scenario, told


async def send(session: ClientSession, origin: str, request: Request) -> Received | None:
    """The response to a request; None: the client left before there was one."""
    sending = asyncio.create_task(_send(session, origin, request))
    if request.leaves_after is not None:
        for _ in range(request.leaves_after):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending])
        return None
    return await sending


async def _send(session: ClientSession, origin: str, request: Request) -> Received:
    try:
        url = URL(origin + request.target, encoded=True)
        async with session.request(
            request.method, url, data=request.body or None, headers=request.headers, allow_redirects=False
        ) as response:
            head = tuple(response.headers.items())
            return Received(response.status, head, await response.read(), reason=response.reason or "")
    except ClientError:
        return Received(is_cut=True)


@asynccontextmanager
async def load_runner(
    scope: str, *, fresh_store: Callable[[], StoreSetting] = StoreSetting, replicas: int = 1
) -> AsyncIterator[LoadRunner]:
    """A kind of proxies in front of a reference of their own."""
    server = ReferenceServer(reference=Reference(tells_tenants_apart=scope == "credential"))
    async with ScriptedUpstream().serving() as upstream, ClientSession(connector=TCPConnector(limit=0)) as session:
        upstream.reply = server
        yield LoadRunner(
            session=session,
            upstream=upstream,
            server=server,
            scope=scope,
            fresh_store=fresh_store,
            replicas=replicas,
        )


def _samples(proxy: Running) -> Sequence[Sample]:
    """How many items wait for the upstream."""
    return next(iter(proxy.metrics.queued_items.collect())).samples


def _model(request: Request) -> str:
    return str(orjson.loads(request.body)["model"])


def _is_merged(body: bytes) -> bool:
    """Whether a call is for the texts of more than one client."""
    return len({text for text in (b"canary-ann", b"canary-bob", b"canary-cat", b"canary-dan") if text in body}) > 1
