"""What an operator purges is served by no process after its next poll, whatever was under way."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from proxy.config.settings import StoreSetting
from tests.conftest import StartProxy
from tests.e2e.test_coherence import KINDS, TEXTS, change_vectors, known_to, store
from tests.support import workers
from tests.support.cli import run_beside
from tests.support.client import Client, UpstreamResponse
from tests.support.dict_store import written
from tests.support.redis_server import RedisServer
from tests.support.scripted import Call, ScriptedUpstream

__all__ = ["store"]  # a fixture

READS = 1000


def url_of(setting: StoreSetting) -> str:
    """As the operator's command line has it, with the password."""
    return setting.url or str(setting)


@pytest.mark.parametrize("arguments", [("--all",), ("--model", "m*"), (), ("--text", "TEXTS", "--model", "m")])
@pytest.mark.parametrize("store", KINDS, indirect=True)
async def test_a_purge_reaches_every_process(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    store: StoreSetting,
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, other = [await start_proxy(store=store) for _ in range(2)]
    old = (await known_to(one, other))[0].vectors
    change_vectors(upstream)
    (tmp_path / "texts").write_text("\n".join(TEXTS))
    monkeypatch.setenv("CLIENT_KEY", "sk-test")
    given = [str(tmp_path / "texts") if argument == "TEXTS" else argument for argument in arguments]
    about_credential = [] if {"--all", "m*"} & set(arguments) else ["--credential-env", "CLIENT_KEY"]
    requests = ["--upstream", upstream.base_url, *about_credential]
    command = ["cache", "purge", *given, "--store", url_of(store), *requests, "--json"]
    dry = await run_beside(monkeypatch, capsys, *command, "--dry-run")
    done = await run_beside(monkeypatch, capsys, *command)
    assert (dry.status, done.status) == (0, 0)
    assert done.json["entries"] == dry.json["entries"] == (len(TEXTS) if "--text" in arguments else len(TEXTS) + 2)
    for client in (one, other):
        await client.proxy.cache.feed.poll()
    new = (await one.embed(TEXTS)).vectors
    assert new != old
    await written(one.proxy.cache)
    for client in (one, other):
        for _ in range(3):  # from the store, from memory, and by the bytes of the request
            assert (await client.embed(TEXTS)).vectors == new
    assert upstream.items[f'"{TEXTS[0]}"'] == 2


async def test_a_purge_of_one_clients_scope_leaves_the_others_their_entries(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    sqlite_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = StoreSetting(path=sqlite_path)
    client = await start_proxy(store=store)
    await client.proxy.cache.feed.poll()  # as its timer does
    asked = {"model": "m", "input": TEXTS}
    kept = (await client.post(asked, key="Bearer of-another-client")).vectors
    old = (await client.embed(TEXTS)).vectors
    await written(client.proxy.cache)
    change_vectors(upstream)
    monkeypatch.setenv("CLIENT_KEY", "sk-test")
    requests = ["--upstream", upstream.base_url, "--credential-env", "CLIENT_KEY"]
    done = await run_beside(monkeypatch, capsys, "cache", "purge", *requests, "--store", url_of(store), "--json")
    assert (done.status, done.json["entries"]) == (0, len(TEXTS))
    await client.proxy.cache.feed.poll()
    assert (await client.post(asked, key="Bearer of-another-client")).vectors == kept
    assert (await client.embed(TEXTS)).vectors != old


@pytest.mark.parametrize("store", KINDS, indirect=True)
async def test_a_purge_of_old_entries_leaves_what_was_just_stored(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    store: StoreSetting,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = await start_proxy(store=store)
    await client.proxy.cache.feed.poll()
    kept = (await client.embed(TEXTS)).vectors
    await written(client.proxy.cache)
    change_vectors(upstream)
    done = await run_beside(
        monkeypatch, capsys, "cache", "purge", "--older-than", "1h", "--store", url_of(store), "--json"
    )
    assert (done.status, done.json["entries"]) == (0, 0)
    await client.proxy.cache.feed.poll()
    assert (await client.embed(TEXTS)).vectors == kept


class HeldUpstream:
    """Computes a response when it is asked, and sends it when it may."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        self.is_asked, self.may_respond = asyncio.Event(), asyncio.Event()
        upstream.reply = self._reply

    async def _reply(self, call: Call) -> web.StreamResponse:
        response = self._upstream.embed(call)
        self.is_asked.set()
        await self.may_respond.wait()
        return response


async def a_fetch_under_way(
    start_proxy: StartProxy, upstream: ScriptedUpstream, store: StoreSetting
) -> tuple[Client, Client, HeldUpstream, "asyncio.Task[UpstreamResponse]"]:
    """Two proxies' clients, of which the first asks for a vector that will be the old one."""
    one, other = [await start_proxy(store=store) for _ in range(2)]
    for client in (one, other):
        await client.proxy.cache.probe_store()  # as at the start of a process
    await known_to(one, other)
    held = HeldUpstream(upstream)
    asking = asyncio.create_task(one.embed("under way"))
    await held.is_asked.wait()
    change_vectors(upstream)
    return one, other, held, asking


@pytest.mark.parametrize("store", KINDS, indirect=True)
async def test_what_was_under_way_does_not_bring_the_old_vector_back(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    store: StoreSetting,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, other, held, asking = await a_fetch_under_way(start_proxy, upstream, store)
    await run_beside(monkeypatch, capsys, "cache", "purge", "--all", "--store", url_of(store))
    await one.proxy.cache.feed.poll()
    asked_since = asyncio.create_task(one.embed("under way"))  # does not join the fetch from before
    held.may_respond.set()
    old = (await asking).vectors
    new = (await asked_since).vectors
    assert new != old
    await agree([one, other], "under way", new)


async def agree(clients: list[Client], text: str, new: list[list[float]]) -> None:
    for client in clients:
        await written(client.proxy.cache)
        await client.proxy.cache.feed.poll()
    for client in clients:
        assert [(await client.embed(text)).vectors for _ in range(3)] == [new] * 3


@pytest.mark.parametrize("store", KINDS, indirect=True)
async def test_what_landed_before_the_process_knew_is_gone_after_its_next_poll(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    store: StoreSetting,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, other, held, asking = await a_fetch_under_way(start_proxy, upstream, store)
    async with one.proxy.cache.feed._polling:  # its timer does not poll meanwhile
        await run_beside(monkeypatch, capsys, "cache", "purge", "--model", "*", "--store", url_of(store))
        held.may_respond.set()
        old = (await asking).vectors
        await written(one.proxy.cache)
        assert (await other.embed("under way")).vectors == old
    for client in (one, other):
        await client.proxy.cache.feed.poll()
    new = (await other.embed("under way")).vectors
    assert new != old
    await agree([one, other], "under way", new)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_after_the_command_every_worker_of_every_proxy_serves_what_is_new(
    upstream: ScriptedUpstream, tmp_path: Path, redis_server: RedisServer, kind: str
) -> None:
    redis_server.command("FLUSHALL")
    url = redis_server.url if kind == "redis" else f"sqlite:///{tmp_path}/cache.sqlite3"
    with (
        workers.proxy(tmp_path, upstream, "--store", url) as one,
        workers.proxy(tmp_path, upstream, "--store", url) as other,
    ):

        async def ask(session: ClientSession, base_url: str) -> bytes:
            body = {"model": "m", "input": "x", "encoding_format": "base64"}
            async with session.post(
                f"{base_url}/embeddings", json=body, headers={"Authorization": "Bearer k"}
            ) as response:
                return (await response.json())["data"][0]["embedding"]  # type: ignore[no-any-return]

        async def found() -> set[bytes]:
            """Over new connections, so that the kernel chooses workers anew."""
            vectors = set()
            for process in (one, other):
                for _ in range(15):
                    async with ClientSession() as session:
                        vectors.add(await ask(session, process.base_url))
            return vectors

        old = await found()
        assert len(old) == 1
        change_vectors(upstream)
        command = [sys.executable, "-m", "proxy", "cache", "purge", "--all", "--store", url]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        assert "1 entry removed" in done.stdout

        async def is_new() -> bool:
            return old.isdisjoint(await found())

        await workers.until(is_new)
        new = await found()
        assert len(new) == 1
        for process in (one, other):
            async with ClientSession() as session:
                assert {await ask(session, process.base_url) for _ in range(READS)} == new
