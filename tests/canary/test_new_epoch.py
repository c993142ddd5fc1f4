"""With ``--on-drift new-epoch``: an epoch begins when the weights are others, and only then."""

import logging

import pytest

from proxy.errors import StoreError
from tests.support.canaries import HOUR_S, Process
from tests.support.dict_store import Clock, DictStore
from tests.support.drifting import CHANGES, DriftingModel
from tests.support.virtual_loop import virtually

# Other vectors; the same ones by another name are not.
MOVES = {"weights", "dimensions"}


@pytest.mark.parametrize("change", CHANGES)
@virtually
async def test_an_epoch_begins_when_vectors_are_others(change: str) -> None:
    model, clock = DriftingModel(), Clock()
    process = Process(DictStore(), model.origin(), clock, begins_epochs=True)
    await process.epochs.poll()
    await process.tick()
    apply, verdict = CHANGES[change]
    apply(model)
    clock.now += 6 * HOUR_S
    shown = await process.tick()
    assert verdict in shown.split()
    assert process.value("canary_epoch") == (change in MOVES)
    assert process.epochs.of("https://api.example.com/v1/embeddings", "m") == (change in MOVES)


async def test_the_first_vectors_of_an_epoch_are_what_is_compared_with() -> None:
    model, clock = DriftingModel(), Clock()
    process = Process(DictStore(), model.origin(), clock, begins_epochs=True)
    for weights, verdict, epoch in (
        ("w1", "first", 0),
        ("w1", "same-bits", 0),
        ("w2", "drifted", 1),
        ("w2", "same-bits", 1),
        ("w1", "drifted", 2),  # those of epoch 0 again, whose entries are not found again
        ("w1", "same-bits", 2),
    ):
        model.weights = weights
        assert await process.tick() == verdict
        assert process.value("canary_epoch") == epoch
        clock.now += 6 * HOUR_S


async def test_an_upstream_that_is_just_replacing_its_servers_begins_no_epoch() -> None:
    """Else the next one would have vectors of both weights."""
    model, clock = DriftingModel(), Clock()
    process = Process(DictStore(), model.origin(), clock, begins_epochs=True)
    await process.tick()
    answer, count = model.answer, 0

    def mixed(asked: dict[str, object]) -> dict[str, object]:
        nonlocal count
        count += 1
        model.weights = f"w{1 + count % 2}"
        return answer(asked)

    model.answer = mixed  # type: ignore[method-assign]
    clock.now += 6 * HOUR_S
    assert await process.tick() == "drifted"
    assert process.value("canary_epoch") == 0
    model.answer = answer  # type: ignore[method-assign]
    model.weights = "w2"
    clock.now += 6 * HOUR_S
    assert await process.tick() == "drifted"
    assert process.value("canary_epoch") == 1


async def test_a_store_that_fails_before_an_epoch_began_delays_it(caplog: pytest.LogCaptureFixture) -> None:
    model, clock, store = DriftingModel(), Clock(), DictStore()
    process = Process(store, model.origin(), clock, begins_epochs=True)
    await process.tick()
    model.weights = "w2"
    clock.now += 6 * HOUR_S
    answer = model.answer

    def failing(asked: dict[str, object]) -> dict[str, object]:
        store.failure = StoreError("connection", "down")
        return answer(asked)

    model.answer = failing  # type: ignore[method-assign]
    assert await process.tick() == "first"
    store.failure, model.answer = None, answer  # type: ignore[method-assign]
    clock.now += 600  # the turn of the process that took it
    caplog.set_level(logging.WARNING)
    assert await process.tick() == "drifted"
    assert process.value("canary_epoch") == 1
    assert "epoch 1 begins" in caplog.text


async def test_alarm_begins_no_epoch_but_follows_those_of_others() -> None:
    model, clock, store = DriftingModel(), Clock(), DictStore()
    alarms = Process(store, model.origin(), clock)
    begins = Process(store.of_another_process(), model.origin(), clock, begins_epochs=True)
    await begins.tick()
    model.weights = "w2"
    clock.now += 6 * HOUR_S
    assert await alarms.tick() == "drifted"
    assert alarms.value("canary_epoch") == 0
    clock.now += 6 * HOUR_S
    assert await begins.tick() == "drifted"
    await alarms.epochs.poll()
    clock.now += 6 * HOUR_S
    assert await alarms.tick() == "same-bits"
    assert alarms.value("canary_epoch") == 1
