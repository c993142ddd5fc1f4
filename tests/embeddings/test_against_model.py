"""Memory, store, flights, batcher and upstream together, against a model, in whatever order things happen.

The request path is the real one from the parsed body to the answer; only HTTP is left out, so that a step costs little
and each upstream answer comes exactly when the machine says so.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from multidict import CIMultiDict

from proxy.access.access import Access
from proxy.access.validations import Credential, CredentialScope, Validations
from proxy.cache.cache import Cache
from proxy.cache.memory import Memory
from proxy.cache.store import NOTHING, TTL, Changes, Page, Purge, Unleased
from proxy.embeddings.fast_path import FastPath
from proxy.embeddings.patience import Patience
from proxy.embeddings.progress import Progress
from proxy.embeddings.responses import ResponseBuilder
from proxy.embeddings.route import EmbeddingsRoute
from proxy.errors import ProxyError, StoreError, UpstreamUnreachable
from proxy.fetch.batcher import Batcher
from proxy.fetch.fetcher import ATTEMPTS, Fetcher
from proxy.fetch.request import ClientRequest, FetchRequest
from proxy.fetch.result import Failure, FetchResult, FlightResult
from proxy.fetch.spending import Spending
from proxy.fetch.write_through import WriteThrough
from proxy.http.bodies import BodyReader
from proxy.protocol import embedding_request, identities, keys
from proxy.protocol.provider import Limits
from proxy.protocol.providers import GENERIC
from proxy.telemetry.metrics import Metrics
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.router import Origin, Router
from proxy.upstream.urls import Routes
from tests.support.content import content_of
from tests.support.fake_client import response
from tests.support.fake_request import FakeRequest
from tests.support.profiles import IS_SLOW_PROFILE

ITEMS = [f"item {n}" for n in range(8)]
POISON = "poison"
BASE_URL = "http://upstream/v1"
URL = f"{BASE_URL}/embeddings"
# Turns of the loop after which everything that can happen without the outside has happened.
TURNS = 60


class FakeStore(Unleased):
    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.is_failing = False
        self.turns = 1  # of the loop that a read takes

    async def get_many(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        if self.is_failing:
            raise StoreError("connection", "down")
        return {key: self.values[key] for key in keys if key in self.values}

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: TTL,
        overwrite: bool,
        invalid: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]:
        await asyncio.sleep(0)
        if self.is_failing:
            raise StoreError("connection", "down")
        existing = {} if overwrite else {key: self.values[key] for key in values if key in self.values}
        self.values |= {key: value for key, value in values.items() if key not in existing}
        return existing

    async def scan(self, cursor: bytes = b"") -> Page:
        return Page(self.values, None)

    async def delete_many(self, keys: Collection[bytes]) -> int:
        return sum(self.values.pop(key, None) is not None for key in keys)

    async def announce_purge(self, purge: Purge) -> None:
        return None

    async def changes(self) -> Changes:
        return Changes()

    async def aclose(self) -> None:
        return None


class FakeUpstream:
    """Every response has a new vector for each item, ``[the item's number, a serial number]``; a rule sends it."""

    def __init__(self, on_item: Callable[[str], None]) -> None:
        self._on_item = on_item
        self._serial = 0
        self.calls: list[tuple[list[str], asyncio.Future[str]]] = []

    async def embed(self, _url: str, _headers: object, body: bytes, *, items: int, flow: object) -> UpstreamResponse:
        given = orjson.loads(body)["input"]
        assert len(given) == items
        for item in given:
            self._on_item(item)
        outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.calls.append((given, outcome))
        how = await outcome
        if how == "unreachable":
            raise UpstreamUnreachable("no")
        if how == "500" or POISON in given:
            return response(500 if how == "500" else 400, {"error": {}})
        data = [{"index": index, "embedding": self._vector(item)} for index, item in enumerate(given)]
        if how == "spoilt":
            data.pop()
        return response(200, {"data": data[::-1], "model": "m", "usage": {"prompt_tokens": items}})

    def _vector(self, item: str) -> list[float]:
        self._serial += 1
        return [float(ITEMS.index(item) + 1), float(self._serial)]

    def answer(self, which: int, how: str) -> None:
        _, outcome = self.calls.pop(which % len(self.calls))
        if not outcome.done():  # what is sent as its own body ends with its client
            outcome.set_result(how)


def key_of(item: str) -> bytes:
    fields = {"model": "m", "input": item}
    asked = embedding_request.parse_request(orjson.dumps(fields), fields, GENERIC)
    return keys.derive(asked, url=URL, scope=[("authorization", "Bearer k")], vector_headers=[], epoch=0)[0]


KEYS = {item: key_of(item) for item in ITEMS}


async def take(turns: int) -> None:
    """Let the loop turn."""
    for _ in range(turns):
        await asyncio.sleep(0)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = FakeStore()
        self.upstream = FakeUpstream(self.on_item)
        self.requests: list[tuple[list[str], asyncio.Task[Any]]] = []
        self.apart: set[str] = set()  # items that a request refused to share
        self.store_has_failed = False
        self.wrongs: list[str] = []  # an exception where they are found would pass for a failure of the upstream
        self.runner.run(self.start_process())

    async def start_process(self) -> None:
        metrics = Metrics()
        self.cache = Cache(Memory(10_000_000), self.store, metrics, ttl_s=None, timeout_s=60)
        upstream: Any = self.upstream
        origin = Origin(
            name="o", provider=replace(GENERIC, limits=Limits(items=4)), routes=Routes(BASE_URL), client=upstream
        )
        self.validations = self.validated(origin)
        batcher = Batcher(
            metrics,
            WriteThrough(self.cache, self.validations, clock=lambda: 1000.0),
            window_s=0,
            concurrency=3,
            timeout_s=1000,
            max_queued_items=10**4,
            max_queued_bytes=10**8,
            max_incoming_bytes=10**8,
            room=self.cache.room,
            lanes=None,
        )
        self.fetcher = WatchedFetcher(self, batcher)
        responses = ResponseBuilder(self.cache.memory, metrics, reports_full_usage=False)
        access = Access(shares_all=False, owns_key=False, client_keys=None, validations=self.validations)
        self.route = EmbeddingsRoute(
            self.cache,
            self.fetcher,
            Router(origin),
            bodies=BodyReader(metrics, max_bytes=10**6, max_held_bytes=10**8),
            responses=responses,
            fast_path=FastPath(self.cache, responses, metrics=metrics, access=access),
            metrics=metrics,
            access=access,
            validations=self.validations,
            patience=Patience(0.0, 1),
            canary=None,
            is_draining=lambda: False,
        )

    def validated(self, origin: Origin) -> Validations:
        """The credential is known to be good: what happens where it isn't is not part of the model."""
        validations = Validations(ttl_s=1e9, clock=lambda: 0.0)
        identity = identities.identity(CIMultiDict({"Authorization": "Bearer k"}))
        tenant = validations.tenant(identity.credentials)
        validations.confirm(
            Credential(validations.credential_id(tenant, origin, identity), CredentialScope(URL, "m")), asked_at_s=0.0
        )
        return validations

    # --- what must hold

    def on_item(self, item: str) -> None:
        """Called for every item that the batcher sends."""
        if item == POISON or item in self.apart:
            return
        under_way = [given for given, _ in self.upstream.calls if item in given]
        if under_way:
            self.wrongs.append(f"{item} is asked for twice at a time")
        # While the store fails an item that it has is queued for the upstream; when it works again, another request may
        # bring it into memory before its turn comes.
        if self.cache.memory.get(KEYS[item]) is not None and not self.store_has_failed:
            self.wrongs.append(f"{item} is asked for while in memory")
        if KEYS[item] in self.store.values and not self.store_has_failed:
            self.wrongs.append(f"{item} is asked for while stored")

    def check(self, items: list[str], task: "asyncio.Task[Any]") -> None:
        """Every index of a response has its own item's vector. Errors and relayed invalid responses have none."""
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            assert isinstance(error, ProxyError), error
            assert error.code != "internal_error", error
            return
        response = task.result()
        content = content_of(response)
        data = orjson.loads(content).get("data", [])
        if response.status == 200 and len(data) == len(items):
            numbers = {datum["index"]: datum["embedding"][0] for datum in data}
            assert [numbers[i] for i in range(len(items))] == [ITEMS.index(item) + 1 for item in items]
        else:
            assert response.status in {200, 400, 500}

    def teardown(self) -> None:
        try:
            self.all_requests_end()
        finally:
            self.runner.close()

    def all_requests_end(self) -> None:
        """Once the upstream has responded to every call, no request waits and nothing is left behind."""
        while self.upstream.calls:
            self.upstream.answer(0, "good")
            self.turn()
        self.turn()
        assert not self.requests
        self.runner.run(self.fetcher.drain())
        assert repr(self.fetcher) == "<Fetcher <Flights 0 under way>, <Batcher 0 groups, 0 calls, 0 items>>"

    # --- what can happen

    def turn(self) -> None:
        self.runner.run(take(TURNS))
        assert not self.wrongs
        for items, task in self.requests:
            if task.done():
                self.check(items, task)
        self.requests = [(items, task) for items, task in self.requests if not task.done()]

    def ask(self, items: list[str], directives: str = "") -> None:
        async def ask() -> asyncio.Task[Any]:
            fields = {"Authorization": "Bearer k"} | ({"Cache-Control": directives} if directives else {})
            request: Any = FakeRequest(items, fields)
            return asyncio.create_task(self.route.handle(request, Progress("id")))

        self.requests.append((items, self.runner.run(ask())))

    @rule(batches=st.lists(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=6), min_size=1, max_size=4))
    def clients_ask(self, batches: list[list[str]]) -> None:
        for items in batches:
            self.ask(items)
        self.turn()

    @rule(items=st.lists(st.sampled_from(ITEMS), max_size=2))
    def client_asks_with_poison(self, items: list[str]) -> None:
        self.ask([*items, POISON])
        self.turn()

    @rule(items=st.lists(st.sampled_from(ITEMS[:2]), min_size=1), how=st.sampled_from(["no-cache", "no-store"]))
    def client_refuses_to_share(self, items: list[str], how: str) -> None:
        self.apart |= set(items)
        self.ask(items, how)
        self.turn()

    @precondition(lambda self: self.upstream.calls)
    @rule(
        which=st.integers(0),
        how=st.sampled_from(["good"] * 4 + ["500", "unreachable", "spoilt"]),
        meanwhile=st.lists(st.sampled_from(ITEMS), max_size=3),
        turns=st.integers(0, 9),
    )
    def upstream_answers(self, which: int, how: str, meanwhile: list[str], turns: int) -> None:
        """Another client asks so many turns before; it may be reading the store when the response arrives."""
        if meanwhile:
            self.ask(meanwhile)
        self.runner.run(take(turns))
        self.upstream.answer(which, how)
        self.turn()

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0), turns=st.integers(0, 5))
    def client_leaves(self, which: int, turns: int) -> None:
        _, task = self.requests[which % len(self.requests)]
        self.runner.run(take(turns))
        task.cancel()
        self.turn()

    @rule(is_failing=st.booleans(), turns=st.integers(0, 9))
    def store_changes(self, is_failing: bool, turns: int) -> None:
        self.store.turns = turns
        self.store.is_failing = is_failing
        self.store_has_failed |= is_failing

    @rule(which=st.integers(0))
    def store_evicts(self, which: int) -> None:
        if self.store.values:
            del self.store.values[list(self.store.values)[which % len(self.store.values)]]

    @precondition(lambda self: not self.requests and not self.upstream.calls)
    @rule()
    def process_restarts(self) -> None:
        self.runner.run(self.fetcher.drain())
        self.runner.run(self.start_process())


class WatchedFetcher(Fetcher):
    """Tells the machine of items that are asked for apart: after others' mistakes have spoilt them twice, and with a
    client's own body after a spoilt answer to a part of it."""

    def __init__(self, machine: Machine, batcher: Batcher) -> None:
        super().__init__(
            machine.cache, batcher, machine.validations, timeout_s=1000, spending=Spending(), shares_all=False
        )
        self._machine = machine

    async def _attempt(
        self, request: FetchRequest, *, attempt: int, left: dict[bytes, "asyncio.Future[FlightResult]"]
    ) -> tuple[FetchResult, dict[bytes, Failure]]:
        if attempt == ATTEMPTS:
            in_memory = self._in_memory(request, request.keys)
            self._machine.apart |= set(request.only([key for key in request.keys if key not in in_memory]).items)
        return await super()._attempt(request, attempt=attempt, left=left)

    async def send_own_body(self, client_request: ClientRequest) -> UpstreamResponse:
        self._machine.apart |= set(client_request.parsed.items)
        return await super().send_own_body(client_request)


TestModel = Machine.TestCase
TestModel.settings = settings(
    max_examples=2500 if IS_SLOW_PROFILE else 80,
    stateful_step_count=50,
    deadline=None,
    # Explaining a failure traces every line, which takes longer than a test may.
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
