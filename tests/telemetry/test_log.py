"""The log, whose reader may stop while the proxy goes on."""

import errno
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from aiohttp import ClientSession

from proxy.telemetry import log
from proxy.telemetry.log import LogSink
from tests.support.redis_server import free_port
from tests.support.scripted import ScriptedUpstream

PIPE_BYTES = 65536  # what Linux keeps for a reader that does not come, pipe(7)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        if end_is_open(end):
            os.close(end)


def end_is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def read_all(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += os.read(fd, PIPE_BYTES)
    return data


def test_what_is_written_arrives_in_order(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = LogSink(writer)
    lines = [f"line {number} \udcff\n" for number in range(1000)]
    for line in lines:
        assert sink.write(line) == len(line)
    sink.close(timeout_s=60)
    os.close(writer)
    assert read_all(reader, sum(len(line) + 5 for line in lines)).decode() == "".join(lines).replace(
        "\udcff", "\\udcff"
    )


def test_a_reader_that_does_not_read_blocks_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    dropped: list[int] = []
    was_called = threading.Event()

    def on_dropped(lines: int) -> None:
        dropped.append(lines)
        was_called.set()

    sink = LogSink(writer, on_dropped=on_dropped, max_bytes=4 * PIPE_BYTES)
    line = "x" * 1023 + "\n"
    for _ in range(1024):  # would wait at the 65th
        sink.write(line)
    kept = read_all(reader, 4 * PIPE_BYTES).count(b"\n")
    assert was_called.wait(60)
    # The thread has one piece in its hands, and counts it until it is out.
    sink.write("the end\n")
    rest = b""
    while not rest.endswith(b"the end\n"):
        rest += os.read(reader, PIPE_BYTES)
    sink.close(timeout_s=60)
    assert kept + rest.count(b"\n") - 1 + sum(dropped) == 1024


def test_a_reader_that_has_gone_causes_no_error(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    sink = LogSink(writer)
    for _ in range(100):
        sink.write("x\n")
    sink.close(timeout_s=60)
    assert not sink._thread.is_alive()


def test_lines_that_a_full_disk_loses_are_counted_and_reported_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, everything = os.write, 10**9
    # What each call has room for: "before", "torn" and its end, two lines, a line's end and the line, all else.
    room = iter([everything, 4, 0, 0, 1, 0, everything, everything])

    def limited(fd: int, data: bytes) -> int:
        if not (most := next(room)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:most])

    monkeypatch.setattr("proxy.telemetry.log.os.write", limited)
    dropped: list[int] = []
    was_called = threading.Event()

    def on_dropped(lines: int) -> None:
        dropped.append(lines)
        sink.write(f"{lines} were dropped\n")  # as `log.writing` does
        was_called.set()

    path = tmp_path / "log"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    sink = LogSink(descriptor, on_dropped=on_dropped)
    for text in ("before\n", "torn\n", "lost\nlost too\n", "only its end has room\n", "after\n"):
        sink.write(text)
    assert was_called.wait(60)
    sink.close(timeout_s=60)
    os.close(descriptor)
    assert path.read_text() == "before\ntorn\nafter\n4 were dropped\n"
    assert (sink.lost_lines, dropped) == (4, [4])


def test_a_non_blocking_terminal_loses_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    sink = LogSink(writer)
    sink.write("x" * 4 * PIPE_BYTES)
    assert read_all(reader, 4 * PIPE_BYTES) == b"x" * 4 * PIPE_BYTES
    sink.close(timeout_s=60)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield root
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize("form", ["json", "console"])
def test_the_fields_of_a_line(form: str, root: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    with log.writing(form):
        root.error("it %s", "failed", exc_info=OSError("why"))
    shown = capfd.readouterr().err
    if form == "console":
        assert shown.splitlines()[0].endswith(" ERROR   it failed")
        assert shown.splitlines()[-1] == "OSError: why"
        return
    line = orjson.loads(shown)
    assert (line["level"], line["logger"], line["message"]) == ("error", "root", "it failed")
    assert line["exception"].endswith("OSError: why")


async def test_a_proxy_whose_log_is_not_read_responds(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    port, model = free_port(), "m" * 100  # a line is longer for it
    flags = ["--port", str(port), "--admin-port", "0", "--upstream", upstream.base_url, "--store", "memory:"]
    command = [sys.executable, "-m", "proxy", "serve", *flags]
    environment = os.environ | {"HOME": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    assert process.stdout is not None
    assert any(b"Ctrl-C" in line for line in process.stdout)  # and not a byte more
    async with ClientSession() as session:
        for _ in range(2 * PIPE_BYTES // len(model)):
            url = f"http://127.0.0.1:{port}/v1/embeddings"
            async with session.post(url, json={"model": model, "input": "x"}) as answer:
                assert answer.status == 200
                await answer.read()
    process.terminate()
    rest, _ = process.communicate()
    assert process.returncode == 0
    assert len(rest) > PIPE_BYTES
