import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from proxy.cli import commands
from proxy.protocol.providers import PROVIDERS
from tests.support.cli import run
from tests.support.command import FILE


def test_the_providers_are_shown_as_the_file_has_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(FILE)
    monkeypatch.setattr(sys, "argv", ["embedding-proxy", "providers", "--config", str(path), "mine", "jina"])
    with pytest.raises(SystemExit, match="0"):
        commands.main()
    shown = capsys.readouterr().out
    assert shown.startswith("mine        http://gpu:8000/v1/embeddings\n  auth        Authorization: Bearer\n")
    few = ("late_chunking", "return_multivector", "return_tokenized_input")
    assert f"cross-item  {', '.join(f'{name} other than false' for name in few)}\n" in shown
    monkeypatch.setattr(sys, "argv", ["embedding-proxy", "providers"])
    with pytest.raises(SystemExit, match="0"):
        commands.main()
    rows, _, rest = capsys.readouterr().out.rpartition("\n\n")
    assert re.findall(r"^(\w+)", rows, re.MULTILINE) == list(PROVIDERS)
    assert rest.startswith("For all of them, lists for *gemini-embedding-2* and any request for *colbert*,")


def paths(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that name ``command`` and each of its subcommands."""
    yield path
    if isinstance(command, click.Group):
        for name, subcommand in command.commands.items():
            yield from paths(subcommand, (*path, name))


@pytest.mark.parametrize("path", [*paths(commands.cli)], ids="-".join)
def test_every_command_has_a_help_whose_lists_are_not_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(monkeypatch, capsys, *path, "--help")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.startswith(" ".join(("Usage: embedding-proxy", *path)))
    assert "..." not in shown.out.partition("\nCommands:\n")[2]


def test_a_process_shows_its_version() -> None:
    shown = subprocess.run([sys.executable, "-m", "proxy", "--version"], capture_output=True, text=True, check=True)
    assert not shown.stderr
    assert "embedding-proxy" in shown.stdout


def test_without_a_command_it_shows_its_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run(monkeypatch, capsys)
    assert shown.status == 2
    assert shown.out.startswith("Usage: embedding-proxy")
    assert shown.out.count("\n") > 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_on_a_full_disk_it_serves_without_its_banner() -> None:
    command = [sys.executable, "-m", "proxy", "serve", "--port", "0", "--admin-port", "0", "--store", "memory:"]
    with Path("/dev/full").open("w") as full:
        served = subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert served.stderr is not None
    assert "can't print the addresses: No space left on device; serving http://127.0.0.1:" in served.stderr.readline()
    served.terminate()
    log = served.communicate()[1]
    assert (served.returncode, "can't write" in log) == (0, False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
@pytest.mark.parametrize("arguments", [[], ["--help"], ["providers"], ["cache", "purge", "--help"]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "proxy", *arguments]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    message = "embedding-proxy: can't write the output: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, message)


# Sends SIGINT to itself as soon as a module is imported that the command needs.
INTERRUPTED_IMPORT = """
import os, runpy, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = ["embedding-proxy", "providers"]
runpy.run_module("proxy", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["click", "proxy.cli.commands", "aiohttp"])
def test_an_interrupt_while_modules_are_imported_is_one_line(module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT.format(module=module)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "embedding-proxy: interrupted\n")


def test_an_interrupted_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("proxy.cli.commands.config_file_of", interrupt)
    status, out, err = run(monkeypatch, capsys, "providers")
    assert (status, out, err.strip()) == (130, "", "embedding-proxy: interrupted")
