"""A corpus in batches of distinct texts (pure)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from proxy.filling.corpus import Text


class Batch(NamedTuple):
    texts: list[Text]

    def halves(self) -> "tuple[Batch, Batch]":
        middle = len(self.texts) // 2
        return Batch(self.texts[:middle]), Batch(self.texts[middle:])


@dataclass(slots=True)
class Distinct:
    """Passes each text once, and counts the ``lines`` that it has read."""

    lines: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def of(self, texts: Iterable[Text]) -> Iterator[Text]:
        for text in texts:
            digest = blake2b(text.text.encode(), digest_size=16).digest()
            self.lines += 1
            if digest not in self._seen:
                self._seen.add(digest)
                yield text


def batched(texts: Iterable[Text], *, max_items: int, max_chars: int) -> Iterator[Batch]:
    """Batches of at most ``max_items`` items and ``max_chars`` characters. A longer text has a batch of its own."""
    batch: list[Text] = []
    chars = 0
    for text in texts:
        if batch and (len(batch) >= max_items or chars + len(text.text) > max_chars):
            yield Batch(batch)
            batch, chars = [], 0
        batch.append(text)
        chars += len(text.text)
    if batch:
        yield Batch(batch)
