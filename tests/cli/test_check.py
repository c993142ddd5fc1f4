"""The command ``embedding-proxy check``."""

import io
import sys

import orjson
import pytest

from proxy.cli import commands


def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr)"""
    monkeypatch.setattr(sys, "argv", ["embedding-proxy", "check", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(SystemExit) as ended:
        commands.main()
    shown = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, shown.out, shown.err


def test_what_the_demo_accepts_is_found_and_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "demo", "--model", "demo", "--yes", "--max-items", "8"
    status, text, err = check(monkeypatch, capsys, *arguments)
    assert status == 0
    assert err.startswith("embedding-proxy: This makes at most ")
    assert "  embedding-proxy serve --upstream demo\n" in text
    status, json, _ = check(monkeypatch, capsys, *arguments, "--json")
    report = orjson.loads(json)
    assert (status, report["facts"]["dimensions"], report["facts"]["batch"]["largest_accepted"]) == (0, 1536, 8)
    assert report["serve"] == "embedding-proxy serve --upstream demo"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("http://127.0.0.1:1/v1",), 2, "--model is missing"),
        (("http://127.0.0.1:1/v1", "--model", "m"), 2, "add --yes"),
        (("http://127.0.0.1:1/v1", "--model", "m", "--yes"), 1, "did not return a vector for model 'm'"),
        (("opena", "--model", "m", "--yes"), 2, "did you mean openai"),
        (("http://h/v1/embeddings", "--model", "m", "--yes"), 2, "use the base URL http://h/v1"),
        (("openai", "--model", "m", "--yes", "--key-env", "NO_SUCH_KEY"), 2, "NO_SUCH_KEY is not set"),
        (("http://h/v1", "--model", "m", "--provider", "vlm"), 2, "'vlm' is not a provider"),
        (("http://h/v1", "--model", " ", "--yes"), 2, "--model: the name is empty; accepted: the model as clients"),
        (("http://h/v1", "--model", "m", "--max-items", "0"), 2, "--max-items: 0 is not in the range"),
    ],
)
def test_what_goes_wrong_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    ended, out, err = check(monkeypatch, capsys, *arguments)
    assert (ended, out) == (status, "")
    lines = [line for line in err.splitlines() if "at most" not in line or "--yes" in line]
    assert len(lines) == 1
    assert message in lines[0]
