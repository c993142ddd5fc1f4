"""Runs a program of `tests.clients` in its own process, as its users do."""

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).parents[2]


class ClientProcess:
    """Starting a client costs seconds, so one process serves many tests, each of which has its own event loop."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.command = command
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            # Nothing of the developer's own: neither keys, proxies and .env files, nor anybody's telemetry.
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "PYTHONPATH": str(ROOT),
                "ANONYMIZED_TELEMETRY": "False",
                "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "False",
                "DD_REMOTE_CONFIGURATION_ENABLED": "False",
                "HAYSTACK_TELEMETRY_ENABLED": "False",
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            },
        )

    async def embed(self, base_url: str, model: str, texts: list[str]) -> dict[str, Any]:
        """What the program answers: see `tests.clients.loop`."""
        assert self.popen.stdin is not None
        asked = {"base_url": base_url, "key": "sk-test", "model": model, "texts": texts}
        self.popen.stdin.write(orjson.dumps(asked) + b"\n")
        self.popen.stdin.flush()
        line = await self._answer()
        assert line, f"it ended: {self.command}"
        answer: dict[str, Any] = orjson.loads(line)
        return answer

    async def _answer(self) -> bytes:
        assert self.popen.stdout is not None
        reader = asyncio.StreamReader()
        # A copy, for the transport closes what it has read, and the next test reads on.
        pipe = os.fdopen(os.dup(self.popen.stdout.fileno()), "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            return await reader.readline()
        finally:
            transport.close()

    def kill(self) -> None:
        with self.popen:
            self.popen.kill()
