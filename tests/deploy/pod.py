"""A Pod of two processes, ended as the kubelet ends one with a sidecar: the app is told first, and the sidecar once the
app has gone (https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#termination-with-sidecars)."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import ClientConnectionError, ClientSession

from tests.deploy.manifests import KUBERNETES, PREFIX, documents
from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.rolling import until_not_ready

_OWN = {"HOST", "UPSTREAM", "STORE", "LOG_FORMAT"}


def _spec(path: str) -> dict[str, Any]:
    spec: dict[str, Any] = documents((KUBERNETES / path).read_text())[0]["spec"]["template"]["spec"]
    return spec


APP = _spec("overlays/sidecar/app.yaml")
SIDECAR = _spec("components/sidecar/sidecar.yaml")["initContainers"][0]


class Pod:
    """The manifests' own app, or another ``program``, beside the manifests' sidecar."""

    def __init__(self, folder: Path, upstream_url: str, program: str | None = None) -> None:
        flags = [
            word
            for variable in SIDECAR["env"]
            if (name := variable["name"].removeprefix(PREFIX)) not in _OWN
            for word in (f"--{name.lower().replace('_', '-')}", variable["value"])
        ]
        store = f"sqlite:///{folder / 'cache.sqlite3'}"
        self.sidecar = Process(folder, free_port(), "--upstream", upstream_url, "--store", store, *flags)
        self.app = subprocess.Popen(
            [sys.executable, "-c", program or APP["containers"][0]["args"][0]],
            env=os.environ | {"OPENAI_BASE_URL": self.sidecar.base_url, "OPENAI_API_KEY": "k"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def tell_app(self) -> None:
        self.app.send_signal(signal.SIGTERM)

    async def app_ends(self) -> tuple[int, str]:
        """``(exit status, what it wrote)``; its share of the grace period is what the manifest leaves it."""
        async with asyncio.timeout(APP["terminationGracePeriodSeconds"]):
            written, _ = await asyncio.to_thread(self.app.communicate)
        return self.app.returncode, written

    async def tell_sidecar(self) -> None:
        """Returns once it has taken note: it is not ready, or already gone."""
        assert self.app.poll() is not None, "the sidecar is told last"
        self.sidecar.popen.send_signal(signal.SIGTERM)
        async with ClientSession() as session:
            with suppress(ClientConnectionError):
                await until_not_ready(session, self.sidecar)

    async def sidecar_ends(self) -> tuple[int, str]:
        async with asyncio.timeout(APP["terminationGracePeriodSeconds"]):
            return await asyncio.to_thread(self.sidecar.wait)

    def kill(self) -> None:
        for process in (self.app, self.sidecar.popen):
            if process.poll() is None:
                process.kill()
                process.communicate()
