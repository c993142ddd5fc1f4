"""Caches over one store whose steps a state machine orders: in the end all of them serve the store's records."""

import asyncio

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from proxy.cache.cache import Cache
from proxy.cache.entry import Entry
from proxy.cache.memory import Memory
from proxy.protocol import records
from proxy.telemetry.metrics import Metrics
from tests.support.dict_store import Clock, look_up, record, written
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.stepped_store import SteppedStore, World

KEYS = [bytes([n]) * 32 for n in range(3)]
TTL_S = 1000.0
CACHES = 3
# Turns of the loop after which everything that can happen without the store has happened.
TURNS = 30


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(debug=False)
        self.store = SteppedStore(World())
        self.world = self.store.world
        self.tasks: list[asyncio.Task[object]] = []
        self.written = 0

    @initialize(
        timeouts_s=st.lists(st.sampled_from([0.0, 1000.0]), min_size=CACHES, max_size=CACHES),
        invalid=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(["damaged", "expired"])),
    )
    def begin(self, timeouts_s: list[float], invalid: dict[bytes, str]) -> None:
        """A cache of budget 0 waits for no write, one of 1000 s for each."""
        for key, how in invalid.items():
            self.world.values[key] = b"damaged" if how == "damaged" else records.encode(key, record(0.5, at=1.0))

        async def open_() -> list[Cache]:
            return [
                Cache(Memory(10**6), self.store, Metrics(), ttl_s=TTL_S, timeout_s=timeout_s, clock=Clock())
                for timeout_s in timeouts_s
            ]

        self.caches = self.runner.run(open_())

    def turn(self) -> None:
        async def take() -> None:
            for _ in range(TURNS):
                await asyncio.sleep(0)

        self.runner.run(take())
        for cache in self.caches:
            # What has expired is served to nobody, so another may stand by now.
            for key, entry in cache.peek(KEYS, min_stored_at_s=cache.freshness_cutoff_s(None)).items():
                if entry.is_confirmed:
                    assert text_of(key, self.world.values[key]) == entry.numbers()

    @rule(which=st.integers(0, CACHES - 1), keys=st.sets(st.sampled_from(KEYS), min_size=1))
    def upstream_responds(self, which: int, keys: set[bytes]) -> None:
        self.written += 1
        fresh = {key: record(float(self.written)) for key in sorted(keys)}
        self.start(which, lambda cache: cache.write(fresh, overwrite=False))

    @rule(which=st.integers(0, CACHES - 1), keys=st.sets(st.sampled_from(KEYS), min_size=1))
    def client_requests(self, which: int, keys: set[bytes]) -> None:
        self.start(which, lambda cache: look_up(cache, *sorted(keys)))

    def start(self, which: int, what: object) -> None:
        async def begin() -> None:
            self.tasks.append(asyncio.create_task(what(self.caches[which])))  # type: ignore[operator]

        self.runner.run(begin())
        self.turn()

    @precondition(lambda self: self.world.steps)
    @rule(which=st.integers(0))
    def store_proceeds(self, which: int) -> None:
        self.world.proceed(which)
        self.turn()

    @rule(is_down=st.booleans())
    def store_changes(self, is_down: bool) -> None:
        self.world.is_down = is_down

    def teardown(self) -> None:
        try:
            if hasattr(self, "caches"):
                self.runner.run(self.all_serve_the_stored_records())
        finally:
            self.runner.close()

    async def all_serve_the_stored_records(self) -> None:
        self.world.proceed_to_the_end()
        if self.tasks:
            await asyncio.wait(self.tasks)
            for task in self.tasks:
                task.result()
        for cache in self.caches:
            await written(cache)
            for breaker in cache._store._breakers.values():
                breaker._cooled_at_s = 0.0  # the clock has gone on
        for _ in range(3):  # an item may first have to be written, or its circuit be closed
            for cache in self.caches:
                await look_up(cache, *KEYS)
                await written(cache)
        for cache in self.caches:
            served = await look_up(cache, *KEYS)
            assert served == {key: text_of(key, self.world.values[key]) for key in served}
            confirmed = cache.peek_confirmed(KEYS, min_stored_at_s=cache.freshness_cutoff_s(None)).found
            assert confirmed.keys() == served.keys()


def text_of(key: bytes, value: bytes) -> bytes:
    return Entry.of(records.decode(key, value)).numbers()


TestFirstWriter = Machine.TestCase
TestFirstWriter.settings = settings(
    max_examples=3000 if IS_SLOW_PROFILE else 100,
    stateful_step_count=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
pytestmark = pytest.mark.timeout(600)
