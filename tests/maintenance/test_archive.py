"""The file of an export, and who writes it."""

import fcntl
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import ConfigError
from proxy.maintenance.archive import open_archive


def test_an_export_that_ends_just_now_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, part = tmp_path / "e", tmp_path / "e.part"
    with open_archive(path, "s") as archive:
        archive.write({bytes(32): b"value"}, b"here")
        archive.write({bytes(32): b"value"}, None)
        archive.finish()
    whole = path.read_bytes()
    path.rename(part)
    lock = fcntl.flock

    def ends(file: Any, operation: int) -> None:
        part.rename(path)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", ends)
    with pytest.raises(ConfigError, match="it exists already"), open_archive(path, "s"):
        pass
    assert path.read_bytes() == whole
