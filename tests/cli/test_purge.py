"""`cache purge` on a store that a proxy has filled: which entries each condition means."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from proxy.config.settings import StoreSetting
from tests.conftest import StartProxy
from tests.support.cli import Ended, run_beside
from tests.support.dict_store import written
from tests.support.scripted import ScriptedUpstream

TEXTS = ["a", "b", "c"]
Purge = Callable[..., Awaitable[Ended]]


@pytest.fixture
async def purge(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    sqlite_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Purge:
    """Runs the command on a store with `TEXTS` of two models and of two credentials."""
    client = await start_proxy(store=StoreSetting(path=sqlite_path))
    for key in ("Bearer sk-test", "Bearer of-another"):
        for model in ("m", "n"):
            await client.post({"model": model, "input": TEXTS}, key=key)
    await written(client.proxy.cache)
    monkeypatch.setenv("CLIENT_KEY", "sk-test")
    monkeypatch.setenv("EMBEDDING_PROXY_STORE", f"sqlite:///{sqlite_path}")

    async def run(*arguments: str) -> Ended:
        return await run_beside(monkeypatch, capsys, "cache", "purge", "--upstream", upstream.base_url, *arguments)

    return run


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts"
    path.write_text("a\nc\nnever asked for\n")
    return path


def left(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM slot").fetchone()
    assert isinstance(count, int)
    return count


async def test_texts_mean_the_entries_that_requests_for_them_would_hit(
    purge: Purge, sqlite_path: Path, texts: Path
) -> None:
    of_requests = ("--text", str(texts), "--model", "m", "--credential-env", "CLIENT_KEY", "--json")
    dry = await purge(*of_requests, "--dry-run")
    assert (dry.status, dry.json["entries"], left(sqlite_path)) == (0, 2, 12)
    done = await purge(*of_requests)
    assert (done.status, done.json["entries"], left(sqlite_path)) == (0, 2, 10)
    assert (await purge(*of_requests)).json["entries"] == 0


async def test_a_credential_without_texts_means_its_scope(purge: Purge, sqlite_path: Path) -> None:
    done = await purge("--credential-env", "CLIENT_KEY", "--json")
    assert (done.status, done.json["entries"], left(sqlite_path)) == (0, 6, 6)


async def test_all_conditions_hold_of_what_is_removed(purge: Purge, sqlite_path: Path) -> None:
    done = await purge("--credential-env", "CLIENT_KEY", "--model", "n", "--older-than", "1d")
    assert (done.status, left(sqlite_path)) == (0, 12)
    done = await purge("--credential-env", "CLIENT_KEY", "--model", "n", "--json")
    assert (done.json["models"], left(sqlite_path)) == ({"n": 3}, 9)


async def test_all_means_everything(purge: Purge, sqlite_path: Path) -> None:
    assert "12 entries removed" in (await purge("--all")).out
    assert left(sqlite_path) == 0


async def test_a_file_without_texts_removes_nothing(purge: Purge, sqlite_path: Path, texts: Path) -> None:
    texts.write_text("\n\n")
    status, out, err = await purge("--text", str(texts), "--model", "m")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"--text {texts}: it has no texts; accepted: one text a line" in err
    assert left(sqlite_path) == 12


@pytest.mark.parametrize("more", [(), ("--older-than", "1s"), ("--dry-run",)])
async def test_a_pattern_that_is_no_text_removes_nothing(
    purge: Purge, sqlite_path: Path, more: tuple[str, ...]
) -> None:
    for pattern, message in (("\udcff*", "'\\udcff*' is not UTF-8"), ("", "the name is empty")):
        refused = await purge("--model", pattern, *more)
        assert (refused.status, refused.err.count("\n")) == (2, 1)
        assert refused.err.startswith(f"embedding-proxy: --model: {message}; accepted: the model as clients name it")
    assert left(sqlite_path) == 2 * 2 * len(TEXTS)
