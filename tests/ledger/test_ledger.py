"""Rows, labels, and how many there can be."""

import asyncio
from hashlib import sha256
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from proxy.access.pseudonyms import Pseudonyms
from proxy.config.settings import UpstreamSetting
from proxy.labels import ItemResult, RequestOutcome
from proxy.ledger.ledger import MAX_PSEUDONYMS, OTHER, UNKNOWN, Ledger
from proxy.telemetry.metrics import Metrics
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.scripted import ScriptedUpstream

SECRET = b"s" * 32


def labels_of(metrics: Metrics) -> set[str]:
    return {
        sample.labels["client"]
        for family in metrics.families()
        for sample in family.samples
        if "client" in sample.labels
    }


def test_a_hundred_thousand_credentials_have_51_labels() -> None:
    metrics = Metrics(ledger=Ledger(max_clients=MAX_PSEUDONYMS))
    pseudonyms = Pseudonyms(SECRET)
    for number in range(100_000):
        client = pseudonyms.of([("authorization", f"Bearer sk-{number}")])
        if number % 2:
            metrics.ledger.admit(client)
        metrics.row(client, f"model {number % 1000}").count_request(RequestOutcome.HIT, held_s=0.0)
    assert len(labels_of(metrics)) == MAX_PSEUDONYMS + 1
    assert len(list(metrics.ledger.rows())) == MAX_PSEUDONYMS + 1  # no model was admitted
    series = [sample for family in metrics.families() for sample in family.samples if "client" in sample.labels]
    assert len(series) <= (MAX_PSEUDONYMS + 1) * 20
    counted = sum(sample.value for sample in series if sample.name == "embedding_proxy_client_requests_total")
    assert counted == 100_000


def test_a_credential_that_no_upstream_has_accepted_takes_no_label() -> None:
    ledger = Ledger(max_clients=1)
    assert ledger.row("made up", "m", None).client == OTHER
    ledger.admit("real")
    ledger.admit("late")
    assert [ledger.row(client, "m", None).client for client in ("real", "late", None)] == ["real", OTHER, OTHER]


def test_a_client_has_its_budget_before_its_label() -> None:
    """Otherwise a client that is new could not ask once `other` has spent its own."""
    ledger = Ledger(max_clients=1)
    assert ledger.account_of("new") == "new"
    ledger.admit("first")
    assert [ledger.account_of(client) for client in ("first", "new", None)] == ["first", OTHER, OTHER]
    assert Ledger().account_of("team") == "team"
    assert Ledger(is_on=False, max_clients=1).account_of("team") is None


def test_names_are_bounded_by_their_list_only() -> None:
    ledger = Ledger()
    assert {ledger.row(f"team {n}", "m", None).client for n in range(1000)} == {f"team {n}" for n in range(1000)}
    assert ledger.row(None, "m", None).client == UNKNOWN


def test_while_it_is_off_nothing_is_shown() -> None:
    metrics = Metrics()
    metrics.row("team", "m").saved += 5
    assert labels_of(metrics) == set()
    assert metrics.row("team", "m").client is None


def test_a_row_counts_what_a_hit_saves() -> None:
    row = Ledger().row("team", "m", 2.0)
    row.hits, row.hit_items, row.duplicates, row.from_store, row.saved = 1, 5, 2, 1, 1_000_000
    assert (row.requests[RequestOutcome.HIT], row.saved, row.cost) == (1, 1_000_000, (0.0, 2.0))
    assert (row.items[ItemResult.MEMORY], row.items[ItemResult.DUPLICATE], row.items[ItemResult.STORE]) == (2, 2, 1)


@given(st.binary(min_size=32, max_size=64), st.lists(st.tuples(st.text(), st.text()), max_size=3))
def test_a_pseudonym_is_the_same_in_every_process_and_shows_nothing(
    secret: bytes, fields: list[tuple[str, str]]
) -> None:
    name = Pseudonyms(secret).of(fields)
    assert name == Pseudonyms(secret).of(fields)
    assert name == "anonymous" if not fields else (name.startswith("c-") and len(name) == 12)
    if fields:
        assert name != Pseudonyms(secret + b"x").of(fields)


async def test_a_reload_that_renames_a_key_counts_for_the_new_name(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """The hits before it were served by the request's bytes, without a look at the key."""
    path = tmp_path / "clients"
    digest = sha256(b"ep-key").hexdigest()
    path.write_text(f"old sha256:{digest} 2026-01-01\n")
    owned = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="held")
    client = await start_proxy(upstream=owned, client_keys=path)
    for _ in range(6):
        await client.post({"model": "m", "input": "a"}, key="Bearer ep-key")
    path.write_text(f"new sha256:{digest} 2026-01-01\n")
    keys = client.proxy.client_keys
    assert keys is not None
    keys.reload()
    for _ in range(4):
        await client.post({"model": "m", "input": "a"}, key="Bearer ep-key")
    assert await requests_of(client, "old") == {"miss": 1, "hit": 5}
    assert await requests_of(client, "new") == {"hit": 4}


async def test_a_request_without_a_known_key_is_counted_as_such(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "clients"
    path.write_text(f"team sha256:{sha256(b'ep-key').hexdigest()} 2026-01-01\n")
    owned = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="held")
    written: list[str] = []
    client = await start_proxy(upstream=owned, client_keys=path, write_log=written.append, log_format="json")
    assert (await client.embed("a")).status == 401
    await asyncio.gather(*(client.post({"model": "m", "input": "a"}, key="Bearer ep-key") for _ in range(3)))
    assert await requests_of(client, UNKNOWN) == {"error": 1}
    client.proxy.log.flush()
    assert '"client":"team"' in "".join(written)
    assert '"client":"unknown key"' in "".join(written)


async def requests_of(client: Client, name: str) -> dict[str, int]:
    return {
        outcome.value: int(count)
        for outcome in RequestOutcome
        if (count := await client.metric("embedding_proxy_client_requests_total", client=name, outcome=outcome.value))
    }
