"""The command ``embedding-proxy``, run in a thread beside the proxy of a test."""

import asyncio
import sys
from typing import Any, NamedTuple

import orjson
import pytest

from proxy.cli import commands


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.out)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> Ended:
    """What the command printed, and its exit status."""
    monkeypatch.setattr(sys, "argv", ["embedding-proxy", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert isinstance(ended.value.code, int)
    return Ended(ended.value.code, *capsys.readouterr())


async def run_beside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> Ended:
    """The same while the event loop of the test serves what the command talks to."""
    return await asyncio.to_thread(run, monkeypatch, capsys, *arguments)
