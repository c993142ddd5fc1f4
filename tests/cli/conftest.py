from pathlib import Path
from typing import Any

import pytest

from proxy.config.settings import Settings
from proxy.process import run


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Settings]:
    """Catches the settings that would have been served."""
    caught: list[Settings] = []

    async def serve(settings: Settings, *, announce: Any, write_log: Any, bound: None, parent: None) -> None:
        assert callable(announce)
        assert callable(write_log)
        assert bound is parent is None
        caught.append(settings)

    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return caught
