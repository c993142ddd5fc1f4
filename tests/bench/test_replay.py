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
