"""Epochs: every process agrees on them, none goes back, and keys of two epochs are never equal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.store import NoStore
from proxy.canary.epochs import EPOCHS_KEY, Epochs
from proxy.canary.kept import KeptValues
from proxy.canary.subject import Subject, epoch_digest, key_of
from proxy.errors import StoreError
from tests.support.canaries import SUBJECT
from tests.support.dict_store import Clock, DictStore
from tests.support.drifting import URL
from tests.support.virtual_loop import run_virtually

D = SUBJECT.digest


class Seen(Epochs):
    """Counts the changes."""

    def __init__(self, store: DictStore, *, must_agree: bool = False) -> None:
        super().__init__(KeptValues(store, record_key=None, clock=Clock()), must_agree=must_agree)
        self.changes = 0
        self.on_change = self._changed

    def _changed(self) -> None:
        self.changes += 1

    @property
    def now(self) -> int:
        return self.of(URL, "m")


async def test_every_model_begins_in_epoch_zero() -> None:
    epochs = Seen(DictStore(), must_agree=True)
    await epochs.poll()
    assert epochs.now == 0
    await epochs.poll()
    assert epochs.changes == 1  # it agrees with the others from now on


async def test_the_other_process_sees_a_new_epoch_with_its_next_poll() -> None:
    store = DictStore()
    one, other = Seen(store), Seen(store.of_another_process())
    assert await one.advance(D, 0) == 1
    assert (one.now, other.now) == (1, 0)
    await other.poll()
    assert (one.now, other.now) == (1, 1)
    assert (one.changes, other.changes) == (1, 1)
    assert other.of(URL, "another") == other.of(URL + "?a=1", "m") == other.of(URL, None) == 0


async def test_two_processes_that_find_the_same_drift_begin_one_epoch() -> None:
    store = DictStore()
    one, other = Seen(store), Seen(store.of_another_process())
    assert [await one.advance(D, 0), await other.advance(D, 0)] == [1, 1]
    assert await other.advance(D, 1) == 2


async def test_what_the_store_loses_is_written_again() -> None:
    store = DictStore()
    epochs = Seen(store)
    await epochs.advance(D, 0)
    store.values.clear()
    await epochs.poll()
    assert epochs.now == 1
    restarted = Seen(store)
    await restarted.poll()
    assert restarted.now == 1


async def test_an_epoch_that_was_overwritten_by_another_process_is_not_lost() -> None:
    """Without a script, Redis does not compare and set in one step."""
    store = DictStore()
    one, other = Seen(store), Seen(store.of_another_process())
    before = dict(store.values)
    await one.advance(D, 0)
    store.values.clear()
    store.values.update(before)
    await other.advance(key_of("another"), 0)
    await one.poll()
    await other.poll()
    assert one.now == other.now == 1
    assert one.current(key_of("another")) == other.current(key_of("another")) == 1


async def test_a_failing_store_changes_nothing() -> None:
    store = DictStore()
    epochs = Seen(store)
    await epochs.advance(D, 0)
    store.failure = StoreError("connection", "down")
    await epochs.poll()
    assert epochs.now == 1
    with pytest.raises(StoreError):
        await epochs.advance(D, 1)
    assert epochs.now == 1


async def test_until_the_store_has_been_read_no_two_processes_have_a_key_in_common() -> None:
    store = DictStore()
    await Seen(store).advance(D, 0)
    store.failure = StoreError("connection", "down")
    one, other = Seen(store, must_agree=True), Seen(store, must_agree=True)
    for epochs in (one, other):
        await epochs.poll()
    assert len({one.now, other.now, 0, 1}) == 4
    store.failure = None
    await one.poll()
    assert one.now == 1
    assert one.changes == 1


async def test_what_is_no_table_counts_as_none_and_is_replaced() -> None:
    store = DictStore()
    kept = KeptValues(store, record_key=None, clock=Clock())
    for content in (b"x", b"\x93", b"\x81\xa1a\xa1b"):
        await kept.put(EPOCHS_KEY, content)
        epochs = Seen(store)
        await epochs.poll()
        assert epochs.now == 0
        assert await epochs.advance(D, 0) == 1


async def test_without_a_store_a_process_has_epochs_of_its_own() -> None:
    kept = KeptValues(NoStore(), record_key=None, clock=Clock())
    epochs = Epochs(kept, must_agree=True)
    await epochs.poll()
    assert epochs.of(URL, "m") == 0
    assert await epochs.advance(D, 0) == 1
    await epochs.poll()
    assert epochs.of(URL, "m") == 1


async def test_texts_of_clients_are_remembered_within_bounds() -> None:
    store = DictStore()
    epochs = Seen(store)
    await epochs.advance(D, 0)
    for number in range(5000):
        assert epochs.of(URL, f"m{number}") == 0
    epochs.of(URL, "m" * 2000)
    assert len(epochs._now.remembered) == 4096
    assert epochs.now == 1


STEPS = st.lists(
    st.tuples(st.sampled_from(["advance", "poll", "lose", "restart"]), st.integers(0, 2), st.integers(0, 1)),
    max_size=30,
)


@given(STEPS)
def test_no_process_ever_goes_back(steps: list[tuple[str, int, int]]) -> None:
    """Whatever the order of what three processes do, and whatever the store loses while one of them knows it."""
    run_virtually(_no_process_ever_goes_back(steps))


async def _no_process_ever_goes_back(steps: list[tuple[str, int, int]]) -> None:
    store = DictStore()
    processes = [Seen(store.of_another_process()) for _ in range(3)]
    subjects = [Subject("up", URL, model, model) for model in ("m", "n")]
    seen: dict[tuple[int, int], int] = {}
    for step, which, about in steps:
        process = processes[which]
        if step == "advance":
            digest = subjects[about].digest
            before = process.current(digest)
            assert await process.advance(digest, before) > before
        elif step == "poll":
            await process.poll()
        elif step == "lose":
            store.values.clear()
        else:
            processes[which] = Seen(store.of_another_process())
            seen = {name: epoch for name, epoch in seen.items() if name[0] != which}
        for number, each in enumerate(processes):
            for index, subject in enumerate(subjects):
                epoch = each.of(subject.url, subject.model)
                assert epoch == each.current(subject.digest) >= seen.get((number, index), 0)
                seen[number, index] = epoch
    for process in [*processes, *processes]:
        await process.poll()
    for subject in subjects:
        assert len({process.current(subject.digest) for process in processes}) == 1


def test_what_the_canary_keeps_has_keys_of_its_own() -> None:
    subject = Subject("up", URL, "m", "m")
    names = [
        subject.state_key,
        subject.turn_key,
        subject.digest,
        EPOCHS_KEY,
        *(subject.reference_key(epoch) for epoch in range(3)),
    ]
    assert len(set(names)) == len(names)
    assert {len(name) for name in names} == {32}
    assert subject.digest == epoch_digest(URL, "m")
    others = [Subject("up", URL, "n", "n"), Subject("up", URL + "?a", "m", "m"), Subject("up", URL, None, "m")]
    assert not {other.state_key for other in others} & set(names)
    assert Subject("renamed", URL, "m", None).state_key == subject.state_key
