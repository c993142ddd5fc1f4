"""The embeddings requests by which a corpus is sent (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

_BULK = "u=7"  # RFC 9218 §4.1: after everything else


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingCall:
    """What the requests have in common. ``more`` are further fields of the body."""

    url: str
    model: str
    dimensions: int | None = None
    encoding_format: str = "base64"
    more: Mapping[str, Any] = field(default_factory=dict)
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)  # a credential may be among them

    def body(self, texts: Sequence[str]) -> bytes:
        sized = {} if self.dimensions is None else {"dimensions": self.dimensions}
        fixed = {"model": self.model, "input": texts, "encoding_format": self.encoding_format}
        return orjson.dumps({**fixed, **sized, **self.more})

    def fields(self) -> list[tuple[str, str]]:
        return [*self.headers, ("Content-Type", "application/json"), ("Priority", _BULK)]
