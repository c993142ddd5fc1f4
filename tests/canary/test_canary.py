"""The canary against a model that changes: the right verdict each time, one check an interval over all processes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.cache.store import NoStore, Store
from proxy.canary.check_bodies import TEXTS, tokens_a_month
from proxy.canary.state import RETRY_S
from proxy.canary.subject import Subject
from proxy.errors import StoreError
from proxy.protocol.records import RecordKey
from tests.support.canaries import HOUR_S, SUBJECT, Process
from tests.support.dict_store import Clock, DictStore
from tests.support.drifting import CHANGES, URL, DriftingModel
from tests.support.virtual_loop import virtually

CALLS = len(TEXTS) + 1  # each alone, and a batch


@pytest.fixture
def model() -> DriftingModel:
    return DriftingModel()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("change", CHANGES)
@virtually
async def test_every_change_gets_its_verdict(change: str) -> None:
    model, clock = DriftingModel(), Clock()
    process = Process(DictStore(), model.origin(), clock)
    assert await process.tick() == "first"
    clock.now += 6 * HOUR_S
    apply, verdict = CHANGES[change]
    apply(model)
    shown = await process.tick()
    # A failed check leaves what the last one with vectors said.
    assert shown == ("failed first" if verdict == "failed" else verdict)
    assert process.counted("canary_checks_total", "verdict") == {"first": 1, verdict: 1}


@virtually
async def test_an_upstream_with_noise_is_within_it_and_still_found_out() -> None:
    model, clock = DriftingModel(noise=2e-3), Clock()
    process = Process(DictStore(), model.origin(), clock)
    await process.tick()
    assert 0 < process.value("canary_noise") < 1e-3
    clock.now += 6 * HOUR_S
    model.noise = 2.2e-3
    assert await process.tick() == "within-noise"
    clock.now += 6 * HOUR_S
    model.weights = "w2"
    assert await process.tick() == "drifted"
    assert process.value("canary_distance") > 0.5
    assert process.value("canary_changed_ratio") > 0.9


@virtually
async def test_a_failed_check_is_repeated_sooner_and_ends_no_alarm() -> None:
    model, clock = DriftingModel(), Clock()
    process = Process(DictStore(), model.origin(), clock)
    await process.tick()
    model.weights = "w2"
    clock.now += 6 * HOUR_S
    assert await process.tick() == "drifted"
    model.status = 429
    clock.now += 6 * HOUR_S
    for failures in (1, 2, 3):
        assert await process.tick() == "drifted failed"
        assert process.value("canary_failures") == failures
        calls = len(model.calls)
        clock.now += RETRY_S - 1
        await process.tick()
        assert len(model.calls) == calls
        clock.now += 1
    model.status, model.weights = 200, "w1"
    assert await process.tick() == "same-bits"
    assert process.value("canary_failures") == 0


@virtually
async def test_a_check_that_never_succeeded_has_failed() -> None:
    model = DriftingModel(status=401)
    process = Process(DictStore(), model.origin(), Clock())
    assert await process.tick() == "failed"
    assert process.value("canary_measured_timestamp_seconds") == 0


async def test_the_log_says_what_was_found(
    model: DriftingModel, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    process = Process(DictStore(), model.origin(), clock)
    await process.tick()
    for change in ("nothing", "last bits", "weights", "dimensions", "name", "429", "401"):
        model.__dict__.update(DriftingModel(calls=model.calls).__dict__)
        CHANGES[change][0](model)
        clock.now += 6 * HOUR_S
        await process.tick()
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("proxy.canary")]
    assert all(line.startswith("canary: m of up: ") for line in lines)
    levels = [record.levelname for record in caplog.records if record.name.startswith("proxy.canary")]
    assert levels == ["INFO"] * 3 + ["WARNING"] * 5
    first, same, bits, drifted, dimensions, name, limited, refused = (line.partition("up: ")[2] for line in lines)
    assert first.startswith("first vectors kept")
    assert same == "the same bits as the first vectors"
    assert bits.startswith("the last bits moved: cosine 1.0000000")
    assert drifted.startswith("DRIFTED, other weights: cosine ")
    assert dimensions.startswith("DRIFTED, vectors of another length: 64 before, 32 now")
    assert name.startswith("DRIFTED, another model is named: 'm' before, 'm-2' now; cosine 1.000")
    assert limited == "the check failed: status 429 (1 in a row)"
    assert refused == "the check failed: status 401, asked without a key (2 in a row)"


async def test_two_processes_ask_once_and_both_show_it(model: DriftingModel, clock: Clock) -> None:
    store = DictStore()
    one, other = Process(store, model.origin(), clock), Process(store.of_another_process(), model.origin(), clock)
    await one.tick()
    assert await other.tick() == "first"
    assert len(model.calls) == CALLS
    model.weights = "w2"
    for _ in range(4):
        clock.now += 3 * HOUR_S
        await other.tick()
        await one.tick()
        assert one.verdict == other.verdict
    assert one.verdict == "drifted"
    assert len(model.calls) == 3 * CALLS
    assert one.counted("canary_checks_total", "verdict") == {"first": 1}
    assert other.counted("canary_checks_total", "verdict") == {"drifted": 2}


async def test_a_turn_that_was_taken_and_not_used_delays_the_check(model: DriftingModel, clock: Clock) -> None:
    """The process that took it has died."""
    store = DictStore()
    process = Process(store, model.origin(), clock)
    assert await process.canary._kept.take_turn(SUBJECT.turn_key, b"of another", 6 * HOUR_S)
    assert await process.tick() == ""
    clock.now += 600
    assert await process.tick() == "first"


async def test_a_restart_goes_on_with_the_first_vectors(model: DriftingModel, clock: Clock) -> None:
    store = DictStore()
    await Process(store, model.origin(), clock).tick()
    model.weights = "w2"
    clock.now += HOUR_S
    process = Process(store, model.origin(), clock)
    assert await process.tick() == "first"  # it is not time yet
    clock.now += 5 * HOUR_S
    assert await process.tick() == "drifted"


async def test_a_store_that_lost_everything_gets_the_first_vectors_again(model: DriftingModel, clock: Clock) -> None:
    store = DictStore()
    process = Process(store, model.origin(), clock)
    await process.tick()
    store.values.clear()
    model.weights = "w2"
    clock.now += 6 * HOUR_S
    assert await process.tick() == "drifted"
    other = Process(store, model.origin(), clock)
    clock.now += 6 * HOUR_S
    assert await other.tick() == "drifted"


async def test_damaged_values_are_replaced(model: DriftingModel, clock: Clock) -> None:
    store = DictStore()
    await Process(store, model.origin(), clock).tick()
    store.values.update({key: value[:-1] + b"?" for key, value in store.values.items()})
    clock.now += 6 * HOUR_S
    assert await Process(store, model.origin(), clock).tick() == "first"
    clock.now += 6 * HOUR_S
    assert await Process(store, model.origin(), clock).tick() == "same-bits"


async def test_values_of_another_record_key_do_not_count(model: DriftingModel, clock: Clock) -> None:
    store = DictStore()
    keyed = RecordKey(b"k" * 32)
    await Process(store, model.origin(), clock, record_key=keyed).tick()
    model.weights = "w2"
    clock.now += 6 * HOUR_S
    assert await Process(store, model.origin(), clock, record_key=RecordKey(b"j" * 32)).tick() == "first"


async def test_there_are_no_checks_while_the_store_fails(
    model: DriftingModel, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = DictStore()
    process = Process(store, model.origin(), clock)
    await process.tick()
    store.failure = StoreError("connection", "down")
    clock.now += 6 * HOUR_S
    assert await process.tick() == "first"
    await process.tick()
    assert len(model.calls) == CALLS
    warnings = [record for record in caplog.records if record.levelname == "WARNING" and record.name != "asyncio"]
    assert [record.getMessage() for record in warnings] == [
        "canary: no checks while the store fails (connection: down)"
    ]
    store.failure = None
    assert await process.tick() == "same-bits"


async def test_without_a_store_the_first_vectors_last_as_long_as_the_process(
    model: DriftingModel, clock: Clock
) -> None:
    process = Process(NoStore(), model.origin(), clock)
    assert await process.tick() == "first"
    model.weights = "w2"
    clock.now += 6 * HOUR_S
    assert await process.tick() == "drifted"
    assert await Process(NoStore(), model.origin(), clock).tick() == "first"


async def test_a_clock_that_is_ahead_does_not_end_the_checks(model: DriftingModel, clock: Clock) -> None:
    store = DictStore()
    ahead = Clock()
    ahead.now += 24 * HOUR_S
    await Process(store, model.origin(), ahead).tick()
    assert await Process(store, model.origin(), clock).tick() == "same-bits"


async def test_a_check_costs_what_the_banner_says(model: DriftingModel, clock: Clock) -> None:
    process = Process(DictStore(), model.origin(), clock)
    await process.tick()
    assert process.value("canary_tokens_total") == 7 * 2 * len(TEXTS)
    asked = sum(len(str(text).encode()) for call in model.calls for text in call["input"]) or 0
    assert asked > 0
    assert tokens_a_month(HOUR_S) == 6 * tokens_a_month(6 * HOUR_S)
    assert 20_000 < tokens_a_month(6 * HOUR_S) < 60_000


async def test_calls_are_plain_and_have_the_key_of_the_canary(model: DriftingModel, clock: Clock) -> None:
    subject = Subject("up", URL + "?api-version=1&code=c4nary&key=c4nary", "m", "m")
    await Process(DictStore(), model.origin(key="own", canary_key="its"), clock, subjects=[subject]).tick()
    assert {call["url"] for call in model.calls} == {URL + "?api-version=1"}
    assert {headers["Authorization"] for headers in model.headers} == {"Bearer its"}
    assert {frozenset(call) - {"url"} for call in model.calls} == {frozenset({"model", "input"})}
    model.headers.clear()
    await Process(DictStore(), model.origin(key="own"), clock).tick()
    assert {headers["Authorization"] for headers in model.headers} == {"Bearer own"}
    model.headers.clear()
    await Process(DictStore(), model.origin(), clock).tick()
    assert not any("Authorization" in headers for headers in model.headers)


@pytest.mark.parametrize(
    ("provider", "name", "batches"),
    [("generic", "m", 1), ("azure", None, 1), ("generic", "gemini-embedding-2", 0)],
)
async def test_a_model_without_lists_is_asked_twice_alone(
    model: DriftingModel, clock: Clock, provider: str, name: str | None, batches: int
) -> None:
    model.name = "m"
    process = Process(DictStore(), model.origin(provider), clock, subjects=[Subject("up", URL, name, name)])
    await process.tick()
    lists = [call for call in model.calls if isinstance(call["input"], list) and len(call["input"]) > 1]
    assert len(lists) == batches
    assert len(model.calls) == (CALLS if batches else 2 * len(TEXTS))
    assert all(("model" in call) is (name is not None) for call in model.calls)


async def test_metrics_of_a_model_that_is_out_of_use_end(model: DriftingModel, clock: Clock) -> None:
    process = Process(DictStore(), model.origin(), clock)
    await process.tick()
    clock.now += 8 * 24 * HOUR_S
    assert await process.tick() == ""
    assert not process.samples("canary_distance")
    assert len(model.calls) == CALLS


@pytest.fixture(params=["sqlite", "redis", "cluster"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[], Store]]:
    from proxy.cache.redis.store import RedisStore  # noqa: PLC0415
    from proxy.cache.sqlite.store import SQLiteStore  # noqa: PLC0415

    opened: list[Store] = []
    servers = None if request.param == "sqlite" else request.getfixturevalue("servers")
    url = "" if servers is None else servers.emptied("cluster" if request.param == "cluster" else "tcp", None)

    def open_() -> Store:
        store: Store = (
            RedisStore(url, timeout_s=5.0, max_connections=4)
            if url
            else SQLiteStore(tmp_path / "cache.sqlite3", limit_bytes=64 * 1024**2)
        )
        opened.append(store)
        return store

    yield open_
    for store in opened:
        await store.aclose()


async def test_a_real_store_keeps_it_and_only_one_of_its_processes_asks(
    model: DriftingModel, clock: Clock, open_store: Callable[[], Store]
) -> None:
    processes = [Process(open_store(), model.origin(), clock, interval_s=60.0) for _ in range(3)]
    await asyncio.gather(*(process.tick() for process in processes))
    assert len(model.calls) == CALLS
    model.weights = "w2"
    clock.now += 60
    processes.append(Process(open_store(), model.origin(), clock, interval_s=60.0))
    await open_store().extend_many([SUBJECT.turn_key], ttl_s=0)
    while len(model.calls) == CALLS:  # leases of a real server end by its clock, which no test sets
        await asyncio.gather(*(process.tick() for process in processes))
    assert len(model.calls) == 2 * CALLS
    assert [await process.tick() for process in processes] == ["drifted"] * 4
