"""bench/replay.py as a newcomer runs it."""

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bench.replay
from tests.support import cli
from tests.support.cli import Ended
from tests.support.client_process import ROOT
from tests.support.process import Process
from tests.support.redis_server import free_port

SCRIPT = str(ROOT / "bench" / "replay.py")

Replay = Callable[..., Ended]


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Replay:
    """Runs it in this process, which has imported what it needs: the openai client takes seconds."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
        capsys.readouterr()
        message: object = None
        try:
            bench.replay.main()
        except SystemExit as ended:
            message = ended.code
        out, err = capsys.readouterr()
        return Ended(0 if message is None else 1, out, err if message is None else f"{err}{message}\n")

    return run


def test_it_says_what_to_install_where_something_is_missing() -> None:
    ended = in_a_process("-S", SCRIPT, "corpus.jsonl.gz")  # without any package
    assert ended.returncode == 1
    assert ended.stderr == (
        "bench/replay.py needs numpy. After make run: .venv/bin/pip install openai tqdm, and run it with"
        " .venv/bin/python\n"
    )


def test_it_shows_what_the_cache_did(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl.gz"
    corpus.write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}\n{"text": ""}\n{"text": "one"}\n'))
    process = Process(tmp_path, 0, "--store", "memory:")
    try:
        ended = in_a_process(SCRIPT, str(corpus), "--base-url", process.base_url, "--admin-url", process.admin_url)
    finally:
        process.popen.kill()
        process.wait()
    assert ended.returncode == 0, ended.stderr
    first, second = ([int(number) for number in line.split()[:5]] for line in ended.stdout.splitlines()[2:])
    assert (first, second) == ([1, 0, 1, 2, 1], [2, 2, 1, 0, 0])  # pass, hits, duplicates, sent up, calls


def test_what_goes_wrong_is_one_line(tmp_path: Path, replay: Replay) -> None:
    good, bad = tmp_path / "corpus.jsonl.gz", tmp_path / "bad.jsonl.gz"
    good.write_bytes(gzip.compress(b'{"text": "one"}\n'))
    bad.write_bytes(gzip.compress(b'{"txt": "one"}\n'))
    nowhere = f"http://127.0.0.1:{free_port()}"
    for arguments, message in (
        ((str(tmp_path / "none"),), "none: No such file or directory"),
        ((__file__,), "test_replay.py: Not a gzipped file"),
        ((str(bad),), 'each line has to be an object with a "text"'),
        ((str(good), "--base-url", nowhere + "/v1", "--admin-url", nowhere), "can't reach the proxy: "),
    ):
        ended = replay(*arguments)
        assert ended.status == 1
        assert message in ended.err
        assert ended.err.count("\n") == 1


def test_it_compares_with_a_report(
    tmp_path: Path, replay: Replay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, ids, sent = tmp_path / "texts.jsonl.gz", tmp_path / "ids.gz", tmp_path / "sent.jsonl.gz"
    texts.write_bytes(gzip.compress(b"".join(b'{"text": "text %d"}\n' % n for n in range(5))))
    ids.write_bytes(gzip.compress(b"0\n1\n1\n4\n0\n7\n"))
    made = replay(str(texts), "--ids", str(ids), "--write", str(sent), "--passes", "0")
    assert made.status == 0, made.err
    assert gzip.decompress(sent.read_bytes()).count(b"\n") == 6
    sizes = "--memory", "64MiB", "--store-limit", "none"
    how = "--model", "demo", "--batch", "2", "--json", *sizes
    report = cli.run(monkeypatch, capsys, "analyze", str(sent), str(sent), *how)
    (tmp_path / "report.json").write_text(report.out)
    (tmp_path / "other.json").write_text(report.out.replace('"upstream": 4', '"upstream": 3'))
    for name, status in (("report", 0), ("other", 1)):
        process = Process(tmp_path, 0, "--store", "memory:", "--memory", "64MiB")
        urls = "--base-url", process.base_url, "--admin-url", process.admin_url
        try:
            ended = replay(
                str(sent), *urls, "--batch", "2", "--concurrency", "1",
                "--expect", str(tmp_path / f"{name}.json"),
            )  # fmt: skip
        finally:
            process.popen.kill()
            process.wait()
        assert ended.status == status, ended.err
        counts = {line.split()[0]: line.split()[1:3] for line in ended.out.splitlines()[-5:]}
        assert counts["items"] == ["12", "12"]
        assert counts["distinct"] == ["4", "4"]
        assert counts["upstream"][0] == "4"
