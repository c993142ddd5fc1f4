"""The lines of corpora and logs, plain or gzipped, read one by one."""

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from proxy.errors import ConfigError

# Longer than the largest body that the proxy accepts by default, so a longer line can't be a request.
MAX_LINE_BYTES = 64 * 1024 * 1024
_SAMPLE_BYTES = 1024 * 1024  # the part by which the format is detected
_GZIP = b"\x1f\x8b"
_OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": "zstd; decompress it with: zstd -d",
    b"BZh": "bzip2; decompress it with: bzip2 -d",
    b"\xfd7zXZ": "xz; decompress it with: xz -d",
    b"PK\x03\x04": "a ZIP archive; extract it",
    b"PAR1": "Parquet; export it as JSON Lines",
    b"\xff\xfe": "UTF-16; convert it with: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; convert it with: iconv -f UTF-16 -t UTF-8",
    b"SQLite format 3": "a SQLite database; export it as JSON Lines",
}
_BOM = b"\xef\xbb\xbf"


class DamagedInput(Exception):
    """The rest of the file can't be read. The message says why."""


class InputFile:
    """An open file. ``name`` is how messages call it."""

    def __init__(self, name: str, stream: IO[bytes], sample: bytes) -> None:
        self.name = name
        self.sample = sample  # its beginning
        self._stream = stream

    def lines(self) -> Iterator[bytes | None]:
        """Each line without its end; None for one that is longer than `MAX_LINE_BYTES`. Raises `DamagedInput`."""
        stream, limit = self._stream, MAX_LINE_BYTES + 1
        try:
            line = stream.readline(limit).removeprefix(_BOM)
            while line:
                if len(line) >= limit and not line.endswith(b"\n"):
                    yield None
                    while (line := stream.readline(limit)) and not line.endswith(b"\n"):
                        pass
                else:
                    yield line.rstrip(b"\r\n")
                line = stream.readline(limit)
        except (EOFError, zlib.error, OSError) as error:
            raise DamagedInput(_reason(error)) from error


@contextmanager
def opened(path: Path) -> Iterator[InputFile]:
    """A file, or standard input for ``-``. Raises `ConfigError` if it can't be read, or has a format that is not
    supported."""
    name = "standard input" if str(path) == "-" else str(path)
    try:
        raw = cast(BufferedReader, sys.stdin.buffer) if str(path) == "-" else path.open("rb")
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}") from error
    with raw:
        try:
            head = raw.peek(16)[:16]
            stream = cast(BufferedReader, gzip.GzipFile(fileobj=raw)) if head.startswith(_GZIP) else raw
            sample = stream.peek(_SAMPLE_BYTES)[:_SAMPLE_BYTES]
        except (EOFError, zlib.error, OSError) as error:
            raise ConfigError(f"{name}: {_reason(error)}") from error
        for magic, what in _OTHER_FORMATS.items():
            if sample.startswith(magic):
                raise ConfigError(f"{name}: the file is {what}")
        if b"\0" in sample:
            raise ConfigError(
                f"{name}: not a text file; accepted: JSON Lines, logs and plain text in UTF-8, or gzipped"
            )
        yield InputFile(name, stream, sample)


def _reason(error: Exception) -> str:
    if isinstance(error, gzip.BadGzipFile | zlib.error):
        return f"damaged gzip data ({error})"
    if isinstance(error, EOFError):
        return "the gzip data ends too early"
    strerror = getattr(error, "strerror", None)
    return str(strerror or error)
