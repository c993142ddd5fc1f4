"""What is assumed of a model whose upstream is not asked (pure)."""

from fnmatch import fnmatchcase
from typing import Any

UNKNOWN_DIMENSIONS = 1536
# The dimensions of a model's vectors where a request names none, as their makers document them. First match wins.
_DIMENSIONS = (
    ("*text-embedding-3-large*", 3072),
    ("*text-embedding-3-small*", 1536),
    ("*text-embedding-ada-002*", 1536),
    ("*gemini-embedding-*", 3072),
    ("*text-embedding-004*", 768),
    ("*embed-v4*", 1536),
    ("*embed-*light-v3*", 384),
    ("*embed-*-v3*", 1024),
    ("*voyage-*", 1024),
    ("*jina-embeddings-v3*", 1024),
    ("*jina-embeddings-v4*", 2048),
    ("*jina-embeddings-v2-base*", 768),
    ("*mistral-embed*", 1024),
    ("*codestral-embed*", 1536),
    ("*nomic-embed*", 768),
    ("*mxbai-embed-large*", 1024),
    ("*bge-m3*", 1024),
    ("*bge-large*", 1024),
    ("*bge-base*", 768),
    ("*bge-small*", 384),
    ("*e5-large*", 1024),
    ("*e5-base*", 768),
    ("*e5-small*", 384),
    ("*all-minilm*", 384),
    ("*qwen3-embedding-0.6b*", 1024),
    ("*qwen3-embedding-4b*", 2560),
    ("*qwen3-embedding-8b*", 4096),
    ("demo", 1536),
)
_FIELDS = ("dimensions", "output_dimension")
_MAX_DIMENSIONS = 65_536


def requested_dimensions(fields: dict[str, Any]) -> int | None:
    """The dimensions that a request's body asks for."""
    for name in _FIELDS:
        value = fields.get(name)
        if type(value) is int and 0 < value <= _MAX_DIMENSIONS:
            return value
    return None


def known_dimensions(model: str | None) -> int | None:
    """The dimensions of a model's vectors where a request names none; None: not known here."""
    name = (model or "").lower()
    return next((dimensions for pattern, dimensions in _DIMENSIONS if fnmatchcase(name, pattern)), None)
