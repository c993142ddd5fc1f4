"""The lines of files as users have them: plain, gzipped, damaged, and of other formats."""

import gzip
from pathlib import Path

import pytest

from proxy import input_file
from proxy.errors import ConfigError
from proxy.input_file import DamagedInput


def lines_of(path: Path) -> list[bytes | None]:
    with input_file.opened(path) as file:
        return list(file.lines())


def test_lines_of_plain_and_gzipped_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    text = b"\xef\xbb\xbfa\r\nb\n\nc"
    for content in (text, gzip.compress(text)):
        path.write_bytes(content)
        assert lines_of(path) == [b"a", b"b", b"", b"c"]
    monkeypatch.setattr(input_file, "MAX_LINE_BYTES", 3)
    path.write_bytes(b"abc\nabcdefghij\nabc")
    assert lines_of(path) == [b"abc", None, b"abc"]


def test_a_damaged_gzip_file_is_read_up_to_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "f.gz"
    path.write_bytes(gzip.compress(b"".join(b"%d\n" % n for n in range(1_000_000)))[:-100_000])
    found: list[bytes | None] = []
    with input_file.opened(path) as file, pytest.raises(DamagedInput, match="too early"):
        found.extend(file.lines())
    assert len(found) > 100_000


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\x28\xb5\x2f\xfdx", "zstd"), (b"PAR1x", "Parquet"), (b"a\0b", "not a text file"), (b"\xff\xfea\0", "UTF-16"),
     (b"\x1f\x8bgarbage.......", "gzip")],
)  # fmt: skip
def test_files_of_other_formats_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        lines_of(path)
