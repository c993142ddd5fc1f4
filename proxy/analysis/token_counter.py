"""The tokens of items: estimated from bytes, or counted with tiktoken where it is installed with its vocabulary.

tiktoken would download a missing or damaged vocabulary. So it is used only if its cache already has the file, with the
right hash.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from proxy.protocol.items import ItemKind
from proxy.protocol.tokens import typical_tokens

# cl100k_base, the vocabulary of OpenAI's embedding models; its hash is the one that tiktoken checks.
_VOCABULARY = "cl100k_base"
_URL = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
_MODELS = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
_MAX_EXACT_CHARS = 200_000  # tiktoken takes quadratic time for some long texts

Count = Callable[[str], int]


class TokenCounter:
    """``exact`` counts the tokens of a text for the models that it knows; None: everything but token lists is
    estimated."""

    def __init__(self, exact: Count | None) -> None:
        self._exact = exact
        self._has_estimated = False
        self._has_counted = False

    @property
    def basis(self) -> str:
        """How the tokens were found: exact, estimated, or both."""
        if self._has_estimated:
            return "partly estimated" if self._has_counted else "estimated"
        return "exact"

    def count(self, model: str | None, kind: ItemKind, item: Any) -> int:
        """The tokens that the upstream bills for an item."""
        if kind is ItemKind.TOKENS:
            self._has_counted = True
            return len(item)
        if self._exact is not None and type(item) is str and len(item) <= _MAX_EXACT_CHARS and _is_openai(model):
            self._has_counted = True
            return self._exact(item)
        self._has_estimated = True
        return typical_tokens(item)


def _is_openai(model: str | None) -> bool:
    return (model or "").rpartition("/")[2] in _MODELS


def local_vocabulary(environment: Mapping[str, str]) -> Count | None:
    """How tiktoken counts a text; None if it is not installed, or its vocabulary is not on this machine."""
    if find_spec("tiktoken") is None:
        return None
    folder = environment.get("TIKTOKEN_CACHE_DIR") or environment.get("DATA_GYM_CACHE_DIR")
    if folder is None:
        folder = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    file = Path(folder) / hashlib.sha1(_URL.encode()).hexdigest()  # noqa: S324 - tiktoken's name of the file
    try:
        if hashlib.sha256(file.read_bytes()).hexdigest() != _SHA256:
            return None
    except OSError:
        return None
    encode = import_module("tiktoken").get_encoding(_VOCABULARY).encode_ordinary
    return lambda text: len(encode(text))
