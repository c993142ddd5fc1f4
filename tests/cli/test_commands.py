import re
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"]])
def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    shown = run(monkeypatch, capsys, *arguments)
    assert (shown.status, shown.err) == (0, "")
    assert "embedding-proxy" in shown.out


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
