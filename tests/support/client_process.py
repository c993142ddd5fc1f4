"""Runs a program of `tests.clients` in its own process, as its users do."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import trustme

ROOT = Path(__file__).parents[2]
# What the clients import that are tried in this environment.
_PACKAGES = ("openai", "langchain_openai", "haystack.components.embedders.openai_text_embedder")


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of the developer's own: neither keys, proxies and .env files, nor anybody's telemetry."""
    authorities = folder / "authorities.pem"
    trustme.CA().cert_pem.write_to_path(str(authorities))
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "ANONYMIZED_TELEMETRY": "False",
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "False",
        "DD_REMOTE_CONFIGURATION_ENABLED": "False",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        # One authority: each OpenAI client reads all of them, which takes longer than its request.
        "SSL_CERT_FILE": str(authorities),
    }


class WarmedProcess:
    """Forks the Python clients of this environment: see `tests.clients.warmed`."""

    def __init__(self, folder: Path) -> None:
        self._asked, its = socket.socketpair()
        with its:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.clients.warmed", str(its.fileno()), *_PACKAGES],
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env=_environment(folder),
                pass_fds=[its.fileno()],
                start_new_session=True,
            )

    def fork(self, module: str, *arguments: str, stdin: int, stdout: int) -> None:
        socket.send_fds(self._asked, [json.dumps([module, *arguments]).encode()], [stdin, stdout])

    def kill(self) -> None:
        """With all that it has forked."""
        self._asked.close()
        with self._popen:
            os.killpg(self._popen.pid, signal.SIGKILL)


class ClientProcess:
    """Starting a client takes long, so one process serves many tests, each of which has its own event loop."""

    def __init__(self, command: list[str], folder: Path, warmed: WarmedProcess | None = None) -> None:
        self.command = command
        ours_in, its_out = os.pipe()
        its_in, ours_out = os.pipe()
        self._answers, self._questions = os.fdopen(ours_in, "rb"), os.fdopen(ours_out, "wb", buffering=0)
        self._popen: subprocess.Popen[bytes] | None = None
        if warmed is not None and command[:2] == [sys.executable, "-m"]:
            warmed.fork(*command[2:], stdin=its_in, stdout=its_out)
        else:
            self._popen = subprocess.Popen(command, stdin=its_in, stdout=its_out, cwd=folder, env=_environment(folder))
        os.close(its_in)
        os.close(its_out)

    async def embed(self, base_url: str, model: str, texts: list[str]) -> dict[str, Any]:
        """What the program answers: see `tests.clients.loop`."""
        asked = {"base_url": base_url, "key": "sk-test", "model": model, "texts": texts}
        self._questions.write(orjson.dumps(asked) + b"\n")
        line = await self._answer()
        assert line, f"it ended: {self.command}"
        answer: dict[str, Any] = orjson.loads(line)
        return answer

    async def _answer(self) -> bytes:
        reader = asyncio.StreamReader()
        # A copy, for the transport closes what it has read, and the next test reads on.
        pipe = os.fdopen(os.dup(self._answers.fileno()), "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            return await reader.readline()
        finally:
            transport.close()

    def kill(self) -> None:
        self._questions.close()  # a program that was forked ends by that
        self._answers.close()
        if self._popen is not None:
            with self._popen:
                self._popen.kill()
