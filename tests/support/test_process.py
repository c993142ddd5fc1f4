import signal
import sys
from pathlib import Path

import pytest

from tests.support.process import LoggedProcess


def python(folder: Path, code: str) -> LoggedProcess:
    return LoggedProcess(folder, [sys.executable, "-u", "-c", code], until="ready")


def test_unread_output_does_not_block(tmp_path: Path) -> None:
    """No pipe holds a megabyte."""
    process = python(tmp_path, "print('first\\nready\\n' + 'x' * 2**20); exit(3)")
    assert process.banner == "first\nready\n"
    assert process.wait() == (3, "x" * 2**20 + "\n")


def test_lines_are_read_as_they_arrive(tmp_path: Path) -> None:
    process = python(tmp_path, "print('ready'); print('second'); import time; time.sleep(60)")
    assert process.readline() == "second\n"
    assert process.stop(signal.SIGKILL) == (-signal.SIGKILL, "")
    assert process.readline() == ""


def test_failed_start_quotes_the_output(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="it did not start: no port\n"):
        python(tmp_path, "exit('no port')")
