"""What became of a corpus (pure)."""

from dataclasses import dataclass, field
from typing import NamedTuple


class RefusedText(NamedTuple):
    line: int
    reason: str


@dataclass(slots=True)
class Warmed:
    """Numbers of distinct texts, and the tokens that the upstream billed."""

    requests: int = 0
    hits: int = 0
    misses: int = 0
    billed_tokens: int = 0
    refused: int = 0
    refusals: list[RefusedText] = field(default_factory=list)  # the first of them
    stopped: str | None = None  # why not all of the corpus was sent
    is_interrupted: bool = False

    @property
    def sent(self) -> int:
        return self.hits + self.misses


@dataclass(slots=True)
class Forecast:
    """Numbers of distinct texts. ``missing_tokens`` is an estimate."""

    cached: int = 0
    missing: int = 0
    missing_tokens: int = 0


_MAX_REFUSALS = 10_000


@dataclass(slots=True)
class Loaded:
    """Numbers of vectors, and of the ``lines`` read and ``refused``. ``kept``: the store keeps a vector that is not the
    file's. ``same``: the store already had the file's vector. ``repeated``: the file had the item before."""

    lines: int = 0
    stored: int = 0
    replaced: int = 0
    same: int = 0
    kept: int = 0
    repeated: int = 0
    refused: int = 0
    refusals: list[RefusedText] = field(default_factory=list)  # the first of them

    def refuse(self, line: int, reason: str) -> None:
        self.refused += 1
        if len(self.refusals) < _MAX_REFUSALS:
            self.refusals.append(RefusedText(line, reason))
