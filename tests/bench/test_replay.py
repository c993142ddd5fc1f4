"""bench/replay.py as a newcomer runs it."""

import gzip
import subprocess
import sys
from pathlib import Path

from tests.support.client_process import ROOT
from tests.support.process import Process
from tests.support.redis_server import free_port

SCRIPT = str(ROOT / "bench" / "replay.py")


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_it_says_what_to_install_where_something_is_missing() -> None:
    ended = replay("-S", SCRIPT, "corpus.jsonl.gz")  # without any package
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
        ended = replay(SCRIPT, str(corpus), "--base-url", process.base_url, "--admin-url", process.admin_url)
    finally:
        process.popen.kill()
        process.wait()
    assert ended.returncode == 0, ended.stderr
    first, second = ([int(number) for number in line.split()[:5]] for line in ended.stdout.splitlines()[2:])
    assert (first, second) == ([1, 0, 1, 2, 1], [2, 2, 1, 0, 0])  # pass, hits, duplicates, sent up, calls


def test_what_goes_wrong_is_one_line(tmp_path: Path) -> None:
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
        ended = replay(SCRIPT, *arguments)
        assert ended.returncode == 1
        assert message in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_it_compares_with_a_report(tmp_path: Path) -> None:
    texts, ids, sent = tmp_path / "texts.jsonl.gz", tmp_path / "ids.gz", tmp_path / "sent.jsonl.gz"
    texts.write_bytes(gzip.compress(b"".join(b'{"text": "text %d"}\n' % n for n in range(5))))
    ids.write_bytes(gzip.compress(b"0\n1\n1\n4\n0\n7\n"))
    made = replay(SCRIPT, str(texts), "--ids", str(ids), "--write", str(sent), "--passes", "0")
    assert made.returncode == 0, made.stderr
    assert gzip.decompress(sent.read_bytes()).count(b"\n") == 6
    sizes = "--memory", "64MiB", "--store-limit", "none"
    report = replay("-m", "proxy", "analyze", str(sent), str(sent), "--model", "demo", "--batch", "2", "--json", *sizes)
    (tmp_path / "report.json").write_text(report.stdout)
    (tmp_path / "other.json").write_text(report.stdout.replace('"upstream": 4', '"upstream": 3'))
    for name, status in (("report", 0), ("other", 1)):
        process = Process(tmp_path, 0, "--store", "memory:", "--memory", "64MiB")
        urls = "--base-url", process.base_url, "--admin-url", process.admin_url
        try:
            ended = replay(
                SCRIPT, str(sent), *urls, "--batch", "2", "--concurrency", "1",
                "--expect", str(tmp_path / f"{name}.json"),
            )  # fmt: skip
        finally:
            process.popen.kill()
            process.wait()
        assert ended.returncode == status, ended.stderr
        counts = {line.split()[0]: line.split()[1:3] for line in ended.stdout.splitlines()[-5:]}
        assert counts["items"] == ["12", "12"]
        assert counts["distinct"] == ["4", "4"]
        assert counts["upstream"][0] == "4"
