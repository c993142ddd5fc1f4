"""Which store a command works on, and what it refuses to open."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from proxy.cli import commands
from proxy.cli.options.store import StoreOptions, with_store_options
from proxy.protocol.records import RecordKey

SECRET = "0123456789abcdef0123456789abcdef"
Run = Callable[..., tuple[int, StoreOptions | None]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command that opens its store. Returns the exit status and the options it had."""

    def run_command(*arguments: str, creates: bool = False) -> tuple[int, StoreOptions | None]:
        caught: list[StoreOptions] = []

        @click.command(name="open")
        @with_store_options
        @click.pass_context
        def opening(ctx: click.Context, /, **_: Any) -> None:
            caught.append(StoreOptions.of(ctx))
            asyncio.run(_open(caught[0], creates=creates))

        monkeypatch.setitem(commands.cli.commands, "open", opening)
        monkeypatch.setattr(sys, "argv", ["embedding-proxy", "open", *arguments])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, caught[0] if caught else None

    return run_command


async def _open(options: StoreOptions, *, creates: bool) -> None:
    async with options.opened(creates=creates) as store:
        await store.get_many([bytes(32)], timeout_s=5.0)


def test_flags_override_the_environment_which_overrides_the_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "proxy.toml"
    config.write_text(f'store = "sqlite:///{tmp_path}/file.db"\nttl = "30d"\nport = 9000\nrecord_key_env = "SECRET"\n')
    monkeypatch.setenv("SECRET", SECRET)
    status, options = run("--config", str(config), creates=True)
    assert (status, options and options.setting.path) == (0, tmp_path / "file.db")
    assert options is not None
    assert options.ttl_s == 30 * 86400
    assert options.record_key is not None
    assert options.record_key.id == RecordKey(SECRET.encode()).id
    monkeypatch.setenv("EMBEDDING_PROXY_STORE", f"sqlite:///{tmp_path}/variable.db")
    assert run("--config", str(config), creates=True)[0] == 0
    assert run("--config", str(config), "--store", f"sqlite:///{tmp_path}/flag.db", creates=True)[0] == 0
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["file.db", "flag.db", "variable.db"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store", "memory:"], "memory: is only the memory of a running proxy; accepted: sqlite:///… or redis://…"),
        (["--store", "sqlite:////none/such.db"], "sqlite:////none/such.db: there is no such file"),
        (["--store", "mysql://h"], "--store: 'mysql://h' is not a store; accepted: memory:, sqlite:////abs"),
        (["--record-key-env", "UNSET"], "--record-key-env: the environment variable UNSET is not set, or empty"),
    ],
)
def test_what_cannot_be_opened_is_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, _ = run(*arguments)
    said = capsys.readouterr().err
    assert status == 2
    assert said.startswith(f"embedding-proxy: {message}")
    assert said.count("\n") == 1


def test_a_store_that_does_not_work_is_one_line(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _ = run("--store", f"unix://{tmp_path}/no-socket")
    said = capsys.readouterr().err
    assert status == 1
    assert said.count("\n") == 1
    assert "no-socket" in said
