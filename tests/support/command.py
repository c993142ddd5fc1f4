"""The command ``embedding-proxy serve``, run in this process."""

import sys

import pytest

from proxy.cli import commands

# Flags, and tables of the file: an upstream whose key the proxy has, and one whose key it has not.
OWN = ("--upstream", "openai", "--upstream-key-env")
KEYED = '[[upstream]]\nname = "openai"\nprovider = "openai"\nkey_env = "OWNED"\n'
UNKEYED = '[[upstream]]\nprovider = "jina"\nmodels = ["jina*"]\n'
FILE = """
port = 8000

[providers.generic]
neutral = ["trace_id"]

[providers.mine]
like = "vllm"
base_url = "http://gpu:8000/v1"

[[upstream]]
base_url = "https://llm.example.com/v1"

[[upstream]]
provider = "mine"
models = ["local/*"]
"""


def serve(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Returns the exit status."""
    monkeypatch.setattr(sys, "argv", ["embedding-proxy", "serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code
